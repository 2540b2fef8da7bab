"""The defaults, ready to be loaded: `dagster dev -m pgkeep_dagster.definitions`.

pgkeep finds its configuration by itself (./pgkeep.toml, /etc/pgkeep/pgkeep.toml, PGKEEP_* variables); 02:00 is in the time zone that
PGKEEP_TIMEZONE names, else UTC.
"""

import os

from pgkeep_dagster.assets import pgkeep_assets

backup = pgkeep_assets(timezone=os.environ.get("PGKEEP_TIMEZONE") or "UTC")
defs = backup.definitions
