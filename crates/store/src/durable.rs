//! What files and directories need to outlive a power cut, and never to replace one another.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Renames a file or a directory without ever replacing another: `renameat2(RENAME_NOREPLACE)`, and where the file
/// system lacks it (NFS, some FUSE) a hard link, which fails just so when the name is taken.
///
/// # Errors
/// `AlreadyExists`; `Unsupported` where neither can be had, as with directories on a file system without the first.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use nix::errno::Errno;
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(io::Error::from(errno)),
        }
    }
    match std::fs::hard_link(from, to) {
        // An NFS server's lost answer makes the client ask twice, and the second time fails: two names mean success.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && from.symlink_metadata()?.nlink() < 2 => {
            Err(error)
        }
        Err(error)
            if error.kind() == ErrorKind::PermissionDenied || error.kind() == ErrorKind::Unsupported =>
        {
            let why = "this file system can neither rename without replacing nor link, so two writers can't be kept apart";
            Err(io::Error::new(ErrorKind::Unsupported, format!("{why} ({error})")))
        }
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => {
            if let Err(error) = std::fs::remove_file(from) {
                tracing::warn!(%error, "{} is a second name of what is finished, and stays", from.display());
            }
            Ok(())
        }
    }
}

/// The directory that a name is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => Path::new("/"),
    }
}

/// Makes the names in a directory durable.
///
/// # Errors
/// The disk's.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory)?.sync_all() {
        // Some FUSE and network file systems can't; there's nothing more to be had from them.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_replaced_by_a_rename() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a"), "a").unwrap();
        std::fs::write(path("b"), "b").unwrap();
        std::fs::create_dir(path("c")).unwrap();
        std::fs::create_dir(path("d")).unwrap();
        for (from, to) in [("a", "b"), ("a", "c"), ("c", "d"), ("c", "a")] {
            let error = rename_new(&path(from), &path(to)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{from} to {to}");
        }
        rename_new(&path("a"), &path("e")).unwrap();
        rename_new(&path("c"), &path("f")).unwrap();
        assert_eq!(std::fs::read_to_string(path("e")).unwrap(), "a");
        assert!(path("f").is_dir() && !path("a").exists() && !path("c").exists());
    }

    #[test]
    fn every_name_is_in_a_directory() {
        for (path, above) in [("/a/b", "/a"), ("/a", "/"), ("/", "/"), ("a", "."), ("a/b", "a")] {
            assert_eq!(parent(Path::new(path)), Path::new(above), "{path}");
        }
    }
}
