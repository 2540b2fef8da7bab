"""PostgreSQL backups by pgkeep as a Dagster asset, with its checks, its job and its schedule."""

from pgkeep_dagster.assets import PgkeepAssets, pgkeep_assets

__all__ = ["PgkeepAssets", "pgkeep_assets"]
