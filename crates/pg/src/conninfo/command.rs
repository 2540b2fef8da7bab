//! What a person types to reach the same server.

use std::net::IpAddr;

use pgkeep_base::{Secret, quote_for_shell};

use super::Target;
use super::passfile::{IgnoredPassfile, PasswordSource};
use super::target::{Host, HostKind};

impl Target {
    /// A shell's command that runs statements, one after the other, in a database of the first host, as a role. The password,
    /// if it takes one, comes from where psql looks for it.
    pub fn psql(&self, role: &str, database: &str, statements: &[&str]) -> String {
        let mut words = vec!["psql".to_owned(), "-X".to_owned()];
        if let Some(host) = self.hosts.first() {
            words.extend([
                "-h".to_owned(),
                host_name(host),
                "-p".to_owned(),
                host.port.to_string(),
            ]);
        }
        for (option, value) in [("-U", role), ("-d", database)] {
            words.extend([option.to_owned(), value.to_owned()]);
        }
        for statement in statements {
            words.extend(["-c".to_owned(), (*statement).to_owned()]);
        }
        let words: Vec<String> = words.iter().map(|word| quote_for_shell(word)).collect();
        words.join(" ")
    }

    /// Whether the server is reached without leaving this machine: by a socket or a loopback address. (A container's
    /// published port is reached so, too.)
    pub fn is_on_this_machine(&self) -> bool {
        let is_local = |host: &Host| match &host.kind {
            HostKind::Socket(_) => true,
            HostKind::Network {
                address: Some(address),
                ..
            } => address.is_loopback(),
            HostKind::Network { name, .. } => {
                name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
            }
        };
        self.hosts.iter().all(is_local)
    }

    /// Name (or the socket's directory) and port of the first host.
    pub fn first_host(&self) -> Option<(String, u16)> {
        self.hosts.first().map(|host| (host_name(host), host.port))
    }

    /// A password file that is there and isn't used.
    pub fn passfile_ignored(&self) -> Option<&IgnoredPassfile> {
        self.passfile_ignored.as_ref()
    }

    /// The password for the first host, and where it came from.
    pub fn password(&self) -> Option<(Secret, PasswordSource)> {
        self.password_for(self.hosts.first()?)
    }

    /// The line of a password file that gives a password for every database of the first host.
    pub fn passfile_line(&self, password: &Secret) -> Secret {
        let escaped = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
        let (host, port) = self
            .hosts
            .first()
            .map_or(("*", 5432), |host| (host.passfile_name(), host.port));
        Secret::new(format!(
            "{}:{port}:*:{}:{}\n",
            escaped(host),
            escaped(&self.user),
            escaped(password.expose())
        ))
    }
}

fn host_name(host: &Host) -> String {
    match &host.kind {
        HostKind::Socket(directory) => directory.clone(),
        HostKind::Network { name, .. } => name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::PassFile;
    use crate::{Conninfo, Environment};

    use super::*;

    fn target(text: &str) -> Target {
        let environment = Environment::new(|_| None, None, Some("me".to_owned()));
        Conninfo::parse(text).unwrap().resolve(&environment).unwrap()
    }

    #[test]
    fn a_command_says_all_that_psql_must_know_but_the_password() {
        let command = target("host=db port=6432 user=u password=hunter2").psql(
            "post gres",
            "it's",
            &["GRANT SELECT ON \"T\" TO u", "SELECT 1"],
        );
        assert_eq!(
            command,
            "psql -X -h db -p 6432 -U 'post gres' -d 'it'\\''s' -c 'GRANT SELECT ON \"T\" TO u' -c 'SELECT 1'"
        );
    }

    #[test]
    fn what_is_on_this_machine_is_known() {
        for local in [
            "host=/run/x",
            "host=localhost",
            "host=127.0.0.1",
            "hostaddr=::1",
            "host=a,b hostaddr=127.0.0.1,::1",
        ] {
            assert!(target(local).is_on_this_machine(), "{local}");
        }
        for remote in ["host=db", "host=localhost,db", "hostaddr=10.0.0.1"] {
            assert!(!target(remote).is_on_this_machine(), "{remote}");
        }
    }

    #[test]
    fn a_line_of_a_password_file_is_read_back() {
        let target = target("host=db port=6432 user='a:b'");
        let line = target.passfile_line(&Secret::new("p:a\\s"));
        let file = PassFile::parse(Path::new("/p"), line.expose());
        let (password, _) = file.find("db", 6432, "any", "a:b").unwrap();
        assert_eq!(password.expose(), "p:a\\s");
    }
}
