use std::fmt;

use crate::DockerError;

/// The name of an image, with a tag or digest: `postgres:17`, `registry.example.com/team/db@sha256:...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    /// The repository, with the digest where there is one.
    repository: String,
    tag: Option<String>,
}

/// As Docker limits it.
const NAME_BYTES_MAX: usize = 255;

impl ImageName {
    /// Reads a name. Without a tag or digest it means `latest`, as ever.
    ///
    /// # Errors
    /// [`DockerError::ImageName`].
    pub fn parse(text: &str) -> Result<Self, DockerError> {
        let permitted = |character: char| character.is_ascii_alphanumeric() || "._-/:@[]".contains(character);
        let whole = !text.is_empty()
            && text.len() <= NAME_BYTES_MAX
            && text.starts_with(|character: char| character.is_ascii_alphanumeric() || character == '[')
            && !text.ends_with([':', '/', '@'])
            && text.chars().all(permitted);
        if !whole {
            return Err(DockerError::ImageName(text.to_owned()));
        }
        if text.contains('@') {
            return Ok(Self {
                repository: text.to_owned(),
                tag: None,
            });
        }
        // A colon before the last slash belongs to the registry's port.
        let (repository, tag) = match text.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (text, "latest"),
        };
        Ok(Self {
            repository: repository.to_owned(),
            tag: Some(tag.to_owned()),
        })
    }

    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    pub(crate) fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tag {
            Some(tag) => write!(f, "{}:{tag}", self.repository),
            None => f.write_str(&self.repository),
        }
    }
}

/// What an image says of itself.
#[derive(Debug, Clone, Default)]
pub struct Image {
    pub(crate) environment: Vec<String>,
    pub(crate) command: Vec<String>,
    pub(crate) user: String,
    /// Where it wants volumes.
    pub(crate) volumes: Vec<String>,
}

impl Image {
    /// A variable of its environment.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let value = |line: &'_ String| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('='));
        let line = self.environment.iter().find(|line| value(line))?;
        line.get(name.len() + 1..)
    }

    /// Where a volume has to be mounted so that PostgreSQL's data lies in it: the place that the image declares around
    /// PGDATA, or PGDATA itself.
    pub(crate) fn data_mount(&self) -> Option<&str> {
        let data = self.variable("PGDATA").filter(|path| path.starts_with('/'))?;
        let around = |place: &str| {
            let place = place.trim_end_matches('/');
            data.strip_prefix(place)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let declared = self
            .volumes
            .iter()
            .map(String::as_str)
            .filter(|place| around(place));
        Some(declared.max_by_key(|place| place.len()).unwrap_or(data))
    }

    /// Whether its processes begin as root.
    pub(crate) fn starts_as_root(&self) -> bool {
        let user = self.user.split(':').next().unwrap_or_default();
        matches!(user, "" | "0" | "root")
    }
}

/// How far an image has come from its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pulled {
    /// Bytes of layers that have come.
    pub done_bytes: u64,
    /// Bytes of all layers that are known so far.
    pub total_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        for (text, repository, tag) in [
            ("postgres", "postgres", Some("latest")),
            ("postgres:17", "postgres", Some("17")),
            (
                "timescale/timescaledb:latest-pg16",
                "timescale/timescaledb",
                Some("latest-pg16"),
            ),
            ("127.0.0.1:5000/db", "127.0.0.1:5000/db", Some("latest")),
            (
                "127.0.0.1:5000/team/db:1.2",
                "127.0.0.1:5000/team/db",
                Some("1.2"),
            ),
            ("db@sha256:00ff", "db@sha256:00ff", None),
        ] {
            let name = ImageName::parse(text).unwrap();
            assert_eq!((name.repository(), name.tag()), (repository, tag), "{text}");
        }
        for wrong in ["", "-x", "a b", "a:", "a/", "a\n", "é", "$(x)", &"x".repeat(256)] {
            assert!(ImageName::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    fn image(data: &str, volumes: &[&str]) -> Image {
        Image {
            environment: vec!["PGDATABASE=x".to_owned(), format!("PGDATA={data}")],
            volumes: volumes.iter().map(|place| (*place).to_owned()).collect(),
            ..Image::default()
        }
    }

    #[test]
    fn the_volume_goes_where_the_image_wants_it() {
        // The official image up to 17, from 18 on, TimescaleDB's with high availability, and one that declares nothing.
        for (data, volumes, mount) in [
            (
                "/var/lib/postgresql/data",
                &["/var/lib/postgresql/data"][..],
                "/var/lib/postgresql/data",
            ),
            (
                "/var/lib/postgresql/18/docker",
                &["/var/lib/postgresql"],
                "/var/lib/postgresql",
            ),
            (
                "/home/postgres/pgdata/data",
                &["/home/postgres/pgdata", "/etc/x"],
                "/home/postgres/pgdata",
            ),
            ("/srv/data", &["/srv/da"], "/srv/data"),
        ] {
            assert_eq!(image(data, volumes).data_mount(), Some(mount), "{data}");
        }
        assert_eq!(Image::default().data_mount(), None);
        assert_eq!(image("relative", &[]).data_mount(), None);
    }

    #[test]
    fn who_begins_is_known() {
        for (user, root) in [
            ("", true),
            ("0:0", true),
            ("root", true),
            ("postgres", false),
            ("1000", false),
        ] {
            let image = Image {
                user: user.to_owned(),
                ..Image::default()
            };
            assert_eq!(image.starts_as_root(), root, "{user}");
        }
    }
}
