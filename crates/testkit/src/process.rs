//! Processes: the user that servers run as, commands with a clean environment, and waiting for a condition.

use std::{
    env,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nix::unistd::{Gid, Uid, User};

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Looks at `condition` until it holds, and panics with `what` when it doesn't within `limit`.
pub fn poll_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    assert!(
        wait_until(limit, &mut condition),
        "timed out after {limit:?} waiting for: {what}"
    );
}

/// Whether `condition` came to hold within `limit`.
pub(crate) fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The user that servers run as when the tests run as root, because PostgreSQL refuses to: `postgres`, or `nobody` where
/// there is none. `None` when the tests don't run as root.
pub fn server_user() -> Option<(Uid, Gid)> {
    if !Uid::effective().is_root() {
        return None;
    }
    let user = ["postgres", "nobody"]
        .iter()
        .find_map(|name| User::from_name(name).expect("reads the user database"))
        .expect("a user `postgres` or `nobody`");
    Some((user.uid, user.gid))
}

/// A command without the `PG*` variables of whoever runs the tests.
pub(crate) fn clean_command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("PG") && !name_text.starts_with("PGKEEP_") {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C.UTF-8");
    command
}

/// A clean command that runs as the servers' user.
pub(crate) fn server_command(program: impl AsRef<Path>) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = clean_command(program);
    if let Some((uid, gid)) = server_user() {
        command.uid(uid.as_raw()).gid(gid.as_raw());
    }
    command
}

/// Runs a command to its end and panics with what it said when it fails. Returns its standard output.
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("can't run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap_or_else(|error| panic!("{command:?} wrote no UTF-8: {error}"))
}
