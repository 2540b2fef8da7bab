//! A cluster's directory and the watchdog that removes it.

use std::{
    env, fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::process::server_user;

/// A socket's path, with its file's name, is limited to 107 bytes; this leaves room for `/s/.s.PGSQL.65535.lock`.
const BASE_LENGTH_MAX: usize = 60;

/// Waits until its standard input ends, which happens when the test's process ends or lets go of the cluster; then
/// stops the server that the directory's `postmaster.pid` names, if it runs still, and removes the directory.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
read -r _
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
mine() { [ -n "$pid" ] && tr '\0' ' ' 2>/dev/null < "/proc/$pid/cmdline" | grep -qF "$1/data"; }
if mine "$1"; then
  kill -QUIT "$pid"
  waited=0
  while mine "$1" && [ $waited -lt 50 ]; do sleep 0.1; waited=$((waited + 1)); done
  if mine "$1"; then kill -KILL "$pid"; fi
fi
tries=0
while ! rm -rf "$1" 2>/dev/null && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
"#;

/// A temporary directory that the servers' user owns.
#[derive(Debug)]
pub(super) struct ClusterDirectory {
    path: PathBuf,
    watchdog: Child,
}

impl ClusterDirectory {
    pub(super) fn create() -> Self {
        let path = tempfile::Builder::new()
            .prefix("pgkeep-")
            .tempdir_in(base())
            .expect("makes a directory")
            .keep();
        let watchdog = Command::new("/bin/sh")
            .args(["-c", WATCHDOG, "pgkeep-test-watchdog"])
            .arg(&path)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: what kills the test's whole group leaves the one that cleans up.
            .process_group(0)
            .spawn()
            .expect("starts the watchdog");
        give_to_server_user(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("sets the directory's mode");
        Self { path, watchdog }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ClusterDirectory {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        // Nothing to add to a failure here: the directory is a temporary one.
        let _ = self.watchdog.wait();
    }
}

/// Makes the servers' user the owner of a file or directory when the tests run as root.
pub(super) fn give_to_server_user(path: &Path) {
    if let Some((uid, gid)) = server_user() {
        std::os::unix::fs::chown(path, Some(uid.as_raw()), Some(gid.as_raw())).expect("changes the owner");
    }
}

/// The usual directory for temporary files, unless a socket's path would become too long there or the servers' user
/// can't enter it.
fn base() -> PathBuf {
    let usual = env::temp_dir();
    let open_to_all = || {
        usual
            .ancestors()
            .all(|part| fs::metadata(part).is_ok_and(|metadata| metadata.mode() & 0o001 != 0))
    };
    let short = usual.as_os_str().len() <= BASE_LENGTH_MAX && usual.is_absolute();
    if short && (server_user().is_none() || open_to_all()) {
        usual
    } else {
        PathBuf::from("/tmp")
    }
}
