//! Service files (`fe-connect.c`, `parseServiceInfo` and `parseServiceFile`).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::keywords::{self, Support};
use super::parse::Settings;
use super::{ConninfoError, Environment};

/// Where Debian and the RPM packages keep `pg_service.conf`; `PGSYSCONFDIR` comes first.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/etc/postgresql-common", "/etc/sysconfig/pgsql", "/etc"];
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The parameters of a service and the file they stand in.
pub(crate) fn read(
    name: &str,
    file: Option<&str>,
    environment: &Environment,
) -> Result<(Settings, PathBuf), ConninfoError> {
    let mut candidates = Vec::new();
    match file {
        Some(file) => candidates.push(PathBuf::from(file)),
        None => candidates.extend(environment.home().map(|home| home.join(".pg_service.conf"))),
    }
    match environment.variable("PGSYSCONFDIR") {
        Some(directory) => candidates.push(Path::new(&directory).join("pg_service.conf")),
        None => candidates.extend(
            SYSTEM_DIRECTORIES
                .iter()
                .map(|directory| Path::new(directory).join("pg_service.conf")),
        ),
    }
    for path in &candidates {
        if let Some(settings) = read_file(name, path)? {
            return Ok((settings, path.clone()));
        }
    }
    let searched = candidates
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ");
    Err(ConninfoError::ServiceNotFound {
        name: name.to_owned(),
        searched,
    })
}

/// The service's section of one file; `None` if there is no such file or section.
fn read_file(name: &str, path: &Path) -> Result<Option<Settings>, ConninfoError> {
    let error = |line, reason: &str| ConninfoError::ServiceFile {
        path: path.to_owned(),
        line,
        reason: reason.to_owned(),
    };
    if std::fs::metadata(path).is_err() {
        return Ok(None);
    }
    let mut text = String::new();
    // Not by the length that the file system says: a device has none and doesn't end.
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|cause| error(None, &cause.to_string()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(error(None, "it is larger than 1 MiB"));
    }
    parse(name, path, &text)
}

/// The service's section of a file's text.
pub(crate) fn parse(name: &str, path: &Path, text: &str) -> Result<Option<Settings>, ConninfoError> {
    let error = |line, reason: &str| ConninfoError::ServiceFile {
        path: path.to_owned(),
        line,
        reason: reason.to_owned(),
    };
    let mut found: Option<Settings> = None;
    for (index, line) in text.lines().enumerate() {
        let line_number = Some(index + 1);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            if section.split(']').next() == Some(name) {
                found = Some(Settings::new());
            }
            continue;
        }
        let Some(settings) = found.as_mut() else { continue };
        if line.starts_with("ldap") {
            return Err(error(line_number, "look-ups by LDAP are not supported"));
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err(error(line_number, "it is not keyword=value"));
        };
        if key == "service" || key == "servicefile" {
            return Err(error(line_number, "a service can't refer to another one"));
        }
        let Some(keyword) = keywords::find(key) else {
            let nearest = keywords::nearest(key).map(|name| format!(" (did you mean '{name}'?)"));
            return Err(error(
                line_number,
                &format!(
                    "unknown connection parameter '{key}'{}",
                    nearest.unwrap_or_default()
                ),
            ));
        };
        if keyword.support == Support::Refused {
            return Err(ConninfoError::Unsupported(keyword.name));
        }
        // The first one counts.
        settings.entry(keyword.name).or_insert_with(|| value.to_owned());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_is_refused() {
        let refused = read_file("x", Path::new("/dev/zero")).unwrap_err();
        assert!(refused.to_string().contains("larger than 1 MiB"), "{refused}");
    }
}
