use std::fmt::Write;

use crate::select::DEFAULT_CLUSTER;
use crate::settings::{GENERAL_VARIABLES, SETTINGS};

const INTRODUCTION: &str = "\
# Configuration

This page is made from the table of settings in `crates/config`; a test holds the two together.

pgkeep reads one file, the first of these that is there: the one that `--config` names, the one that `PGKEEP_CONFIG`
names, `./pgkeep.toml`, `/etc/pgkeep/pgkeep.toml`. None is needed: everything can be said by variables or flags.

```toml
[cluster.gamepulse]
connection = \"postgres://pgkeep@db:5432/postgres\"
repository = [\"s3://gamepulse-backups/pgkeep\"]
recipients = [\"age1...\"]
dump       = { schedule = \"0 2 * * *\", databases = \"all\" }
keep       = { window = \"30d\", daily = 7, weekly = 4, monthly = 6 }
```

- An unknown key is an error that names the nearest known one.
- Each setting is also a variable, with two underscores where the setting's name has a dot. A variable stands over the
  file, a flag over both; lists are replaced, not joined. An empty variable counts as not set.
- Lists are separated by commas in variables. Durations are `30d`, `12h`, `2w` and the like; sizes `64MiB`, `10GB`.
- Relative paths are relative to the directory that pgkeep is started in.
- A cluster's name is a directory in the repository: small letters, digits, dots, dashes and underscores, at most 63.
  `--cluster` or `PGKEEP_CLUSTER` chooses one, and may be left out where the file has only one.";

const SEVERAL_REPOSITORIES: &str = "
## Several repositories

`repository = [\"file:///srv/backups\", \"s3://gamepulse-backups/pgkeep\"]`: each dump is read once and written into all of
them. One that fails or can't be reached is left out of that dump, which says so and ends with 3; `pgkeep copy ID --to URL`
brings the dump there later, and `pgkeep run` says what a repository lacks. Only when it gets into none of them does a dump fail;
where one of them belongs to another database, it is refused. The slowest sets the pace: a request that a store doesn't answer is given
up after five minutes, and the store with it. A repository that isn't there while another one of the cluster's is (its disk
isn't mounted, say) is made anew by the next dump, which says so and ends with 3, as it does for a second repository that is new:
`pgkeep copy all --to URL` brings the earlier dumps there.

A repository may be a table with settings of its own for `s3`, `gcs`, `azure`, `keep` and
`limits.upload_bytes_per_second`, which stand over those of the cluster, variables included; flags stand over both:

```toml
[cluster.gamepulse]
repository = [
  \"file:///srv/backups\",
  { url = \"s3://gamepulse-backups/pgkeep\", s3 = { region = \"eu-central-1\" }, keep = { window = \"90d\", monthly = 12 } },
]
keep = { window = \"7d\" }
```

What a repository's table doesn't name is as for the cluster, also within `keep`. A setting can't be unset for one repository: credentials of one that isn't like the others go into each table.

`list`, `verify all`, `prune`, `doctor` go through all of them, and `run` prunes those that got the dump. `restore`, `show` and
`export` read from the first one in which the dump can be read and no verification found it damaged; for `latest`, the newest of
all. `pin`, `unpin` and `verify ID` are about every one that has it. One that can't be asked or isn't there is told, and the command
ends with 3 (a pin that isn't everywhere, with 1). `--repository URL` chooses one.

A dump that is damaged in one of them is mended from another: `pgkeep copy ID --repository SOUND --to DAMAGED --repair` compares
what is there with its hashes and writes anew what is damaged.
";

/// The text of `docs/configuration.md`.
pub fn reference_markdown() -> String {
    let mut text = format!(
        "{INTRODUCTION} Where it has none, the name is\n  `{DEFAULT_CLUSTER}` unless one is given.\n"
    );
    text.push_str(
        "\n## Settings of a cluster\n\n| setting | variable | value | default | |\n|---|---|---|---|---|\n",
    );
    for setting in SETTINGS {
        let (name, variable) = (setting.name, setting.variable());
        // Writing to a string can't fail.
        let _ = writeln!(
            text,
            "| `{name}` | `{variable}` | {} | {} | {} |",
            setting.form, setting.default, setting.doc
        );
    }
    text.push_str(SEVERAL_REPOSITORIES);
    text.push_str("\n## Other variables\n\n| variable | |\n|---|---|\n");
    for (name, doc) in GENERAL_VARIABLES {
        let _ = writeln!(text, "| `{name}` | {doc} |");
    }
    text
}
