use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

/// What a connection string is resolved against: environment variables, the home directory and the operating
/// system's user name. Tests make their own; programs use [`Environment::process`].
#[derive(Clone)]
pub struct Environment {
    lookup: Arc<Lookup>,
    home: Option<PathBuf>,
    user: Option<String>,
}

impl Environment {
    /// The environment of this process.
    pub fn process() -> Self {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
        let home = std::env::var_os("HOME")
            .filter(|home| !home.is_empty())
            .map(PathBuf::from)
            .or_else(|| user.as_ref().map(|user| user.dir.clone()));
        Self {
            lookup: Arc::new(|name| std::env::var(name).ok()),
            home,
            user: user.map(|user| user.name),
        }
    }

    /// An environment made of a lookup function for variables, a home directory and a user name.
    pub fn new(
        lookup: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
        home: Option<PathBuf>,
        user: Option<String>,
    ) -> Self {
        Self {
            lookup: Arc::new(lookup),
            home,
            user,
        }
    }

    /// An environment without variables, home or user: only the connection string counts.
    pub fn empty() -> Self {
        Self::new(|_| None, None, None)
    }

    /// A variable's value; unset and empty are the same, as in libpq.
    pub fn variable(&self, name: &str) -> Option<String> {
        (self.lookup)(name).filter(|value| !value.is_empty())
    }

    /// The home directory.
    pub fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }

    /// The operating system's name of the user.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("home", &self.home)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}
