//! Which process writes, told to others, so that they can tell whether it is gone.
//!
//! A process id means something only within one boot of one machine and within one PID namespace: two containers of one
//! machine share the boot id, may share the host name, and have both a process 7. So a process is judged only by one
//! that counts as it does, and everybody else takes it for alive.

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process, as it is named in a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessName {
    /// The host's name.
    pub host: String,
    /// The kernel's boot id.
    boot_id: String,
    /// Its PID and time namespaces, within which process ids and start times count; empty where they can't be known.
    #[serde(default)]
    namespaces: String,
    /// The process id.
    pub pid: u32,
    /// The process's start time in clock ticks since boot: process ids are used again.
    pid_start_ticks: u64,
}

impl ProcessName {
    /// The name of this process.
    pub fn ours() -> Self {
        let pid = std::process::id();
        let start = stat("self").filter(|stat| stat.pid == pid);
        Self {
            host: host_name(),
            boot_id: boot_id(),
            // Where /proc shows another namespace's processes, nothing can be looked up in it.
            namespaces: start.as_ref().map(|_| namespaces()).unwrap_or_default(),
            pid,
            pid_start_ticks: start.map_or(0, |stat| stat.start_ticks),
        }
    }

    /// The name of a process of which nothing is known.
    pub fn unknown() -> Self {
        Self {
            host: "an unknown host".to_owned(),
            boot_id: String::new(),
            namespaces: String::new(),
            pid: 0,
            pid_start_ticks: 0,
        }
    }

    /// Whether that process is certainly gone, as seen from `here`. Only one that counts processes alike can say so.
    pub fn is_gone(&self, here: &Self) -> bool {
        let known = !self.boot_id.is_empty() && !self.namespaces.is_empty();
        let alike =
            (&self.host, &self.boot_id, &self.namespaces) == (&here.host, &here.boot_id, &here.namespaces);
        let Some(pid) = i32::try_from(self.pid).ok().filter(|pid| *pid > 0) else {
            return false;
        };
        if !known || !alike {
            return false;
        }
        // Asked of the kernel: /proc may hide the processes of other users.
        if kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH) {
            return true;
        }
        stat(&self.pid.to_string())
            .is_some_and(|stat| stat.has_ended || stat.start_ticks != self.pid_start_ticks)
    }
}

/// Of `/proc/<pid>/stat` (proc(5)), what is needed.
struct Stat {
    pid: u32,
    /// A zombie does nothing any more; its parent hasn't looked yet.
    has_ended: bool,
    start_ticks: u64,
}

/// `None` when there is no such process, or none that may be looked at.
fn stat(process: &str) -> Option<Stat> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The command's name between parentheses may hold anything, parentheses too.
    let (pid, _) = stat.split_once(" (")?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    Some(Stat {
        pid: pid.parse().ok()?,
        has_ended: matches!(state, "Z" | "X"),
        // Field 22; the state is field 3.
        start_ticks: fields.nth(18)?.parse().ok()?,
    })
}

/// `pid:[4026531836] time:[4026531834]`; empty if there is no telling. Kernels before 5.6 have no time namespaces.
fn namespaces() -> String {
    let link = |name: &str| {
        std::fs::read_link(format!("/proc/self/ns/{name}"))
            .ok()
            .and_then(|target| target.into_os_string().into_string().ok())
    };
    match (link("pid"), link("time")) {
        (Some(pid), Some(time)) => format!("{pid} {time}"),
        (Some(pid), None) => pid,
        (None, _) => String::new(),
    }
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default()
}

/// <https://docs.kernel.org/admin-guide/sysctl/kernel.html#random>
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_a_reused_process_id_is_not_taken_for_it() {
        let ours = ProcessName::ours();
        assert!(
            !ours.namespaces.is_empty(),
            "this machine can't be judged: {ours:?}"
        );
        assert!(!ours.is_gone(&ours));
        let reused = ProcessName {
            pid_start_ticks: ours.pid_start_ticks + 1,
            ..ours.clone()
        };
        assert!(reused.is_gone(&ours));
    }

    #[test]
    fn a_process_that_is_counted_otherwise_is_taken_for_alive() {
        let ours = ProcessName::ours();
        // No process has this id: /proc/sys/kernel/pid_max is lower.
        let gone = ProcessName {
            pid: i32::MAX.unsigned_abs(),
            ..ours.clone()
        };
        assert!(gone.is_gone(&ours));
        let change = |change: &dyn Fn(&mut ProcessName)| {
            let mut elsewhere = gone.clone();
            change(&mut elsewhere);
            elsewhere
        };
        for elsewhere in [
            change(&|process| process.host = "elsewhere".to_owned()),
            change(&|process| process.boot_id = "another boot".to_owned()),
            change(&|process| process.namespaces = "pid:[1] time:[1]".to_owned()),
            // As an earlier pgkeep wrote it.
            change(&|process| process.namespaces.clear()),
            change(&|process| process.pid = 0),
            change(&|process| process.pid = u32::MAX),
        ] {
            assert!(!elsewhere.is_gone(&ours), "{elsewhere:?}");
        }
        let nowhere = change(&|process| process.namespaces.clear());
        assert!(!nowhere.is_gone(&nowhere), "two that know nothing aren't alike");
    }

    #[test]
    fn a_process_that_ended_is_gone_before_and_after_its_parent_looks() {
        let ours = ProcessName::ours();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let name = ProcessName {
            pid: child.id(),
            pid_start_ticks: stat(&child.id().to_string()).unwrap().start_ticks,
            ..ours.clone()
        };
        assert!(!name.is_gone(&ours));
        child.kill().unwrap();
        while !name.is_gone(&ours) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(name.is_gone(&ours));
    }
}
