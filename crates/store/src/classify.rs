//! From `object_store`'s errors, the answers' status and the operating system's codes to a [`Cause`].

use std::error::Error as StdError;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};

use crate::error::{Cause, StoreErrorKind};
use crate::open::Backend;

type Kind = StoreErrorKind;

/// Most of a store's message that's shown.
const WHY_LENGTH_MAX: usize = 300;

/// Why an attempt failed. `status` is that of the last HTTP answer in this attempt, 0 without one.
pub(crate) fn classify(error: &object_store::Error, status: u16, backend: Backend) -> Cause {
    let text = full_text(error);
    if let Some(cause) = by_transport(error) {
        return cause;
    }
    if let Some(io_error) = find_source::<io::Error>(error) {
        return by_io(io_error);
    }
    if status != 0
        && let Some(cause) = by_status(error, status, &text, backend)
    {
        return cause;
    }
    use object_store::Error as E;
    match error {
        E::NotFound { .. } => Cause::new(Kind::NotFound, "no such object"),
        E::AlreadyExists { .. } => Cause::new(Kind::AlreadyExists, "it exists already"),
        E::Precondition { .. } | E::NotModified { .. } => {
            Cause::new(Kind::ShortBody, "the object changed while it was read").final_()
        }
        E::PermissionDenied { .. } => Cause::new(Kind::PermissionDenied, shorten(&text)),
        E::Unauthenticated { .. } => Cause::new(Kind::AuthenticationFailed, shorten(&text)),
        E::NotSupported { .. } | E::NotImplemented { .. } => Cause::new(Kind::Unsupported, shorten(&text)),
        E::InvalidPath { .. } => Cause::new(Kind::InvalidKey, shorten(&text)),
        _ => Cause::new(Kind::Other, shorten(&text)),
    }
}

fn by_transport(error: &object_store::Error) -> Option<Cause> {
    let http = find_source::<HttpError>(error)?;
    if is_about_a_certificate(http) {
        let why = format!(
            "the server's certificate was refused: {}",
            shorten(&innermost(http))
        );
        return Some(Cause::new(Kind::Unreachable, why).not_performed().final_());
    }
    Some(match http.kind() {
        HttpErrorKind::Connect => Cause::new(
            Kind::Unreachable,
            format!("no connection: {}", shorten(&innermost(http))),
        )
        .not_performed(),
        HttpErrorKind::Timeout => Cause::new(Kind::Timeout, "no answer in time"),
        _ => Cause::new(
            Kind::Unreachable,
            format!("the connection was cut: {}", shorten(&innermost(http))),
        ),
    })
}

/// Whether one of the causes says so; the URL, which some of them repeat, says nothing.
fn is_about_a_certificate(error: &dyn StdError) -> bool {
    let mut current = Some(error);
    while let Some(error) = current {
        let text = error.to_string();
        let mut words = text.split_whitespace().filter(|word| !word.contains("://"));
        if words.any(|word| word.contains("certificate")) {
            return true;
        }
        current = error.source();
    }
    false
}

/// The operating system's errors, of `file://` stores.
pub(crate) fn by_io(error: &io::Error) -> Cause {
    use io::ErrorKind as E;
    let kind = match error.kind() {
        E::NotFound => Kind::NotFound,
        E::AlreadyExists => Kind::AlreadyExists,
        E::PermissionDenied | E::ReadOnlyFilesystem => Kind::PermissionDenied,
        E::StorageFull | E::QuotaExceeded | E::FileTooLarge => Kind::NoSpace,
        E::TimedOut | E::StaleNetworkFileHandle | E::HostUnreachable | E::NetworkUnreachable => {
            Kind::Unreachable
        }
        E::Unsupported => Kind::Unsupported,
        E::InvalidFilename | E::IsADirectory | E::NotADirectory => Kind::InvalidKey,
        E::UnexpectedEof => Kind::ShortBody,
        _ => Kind::Other,
    };
    Cause::new(kind, error.to_string())
}

/// Codes: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>
fn by_status(error: &object_store::Error, status: u16, text: &str, backend: Backend) -> Option<Cause> {
    let code = error_code(text).unwrap_or_default();
    let why = match between(text, "<Message>", "</Message>") {
        Some(message) if !code.is_empty() => format!("the store answered {status} {code}: {message}"),
        _ if !code.is_empty() => format!("the store answered {status} {code}"),
        _ => format!("the store answered {status}"),
    };
    let why = shorten(&why);
    let kind = match code {
        "NoSuchBucket" | "ContainerNotFound" => Kind::NoSuchBucket,
        "AccessDenied" | "AllAccessDisabled" => Kind::PermissionDenied,
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "AuthenticationFailed"
        | "InvalidSecurity" => Kind::AuthenticationFailed,
        "RequestTimeTooSkewed" => {
            let why = format!("{why}; this machine's clock is wrong: set it (timedatectl set-ntp true)");
            return Some(Cause::new(Kind::AuthenticationFailed, why).not_performed());
        }
        "RequestTimeout" => Kind::Timeout,
        "SlowDown" | "Throttling" | "ThrottlingException" | "RequestLimitExceeded" | "ServerBusy" => {
            Kind::Throttled
        }
        "InternalError" => Kind::ServerFault,
        "QuotaExceeded" | "XMinioStorageFull" => Kind::NoSpace,
        "NotImplemented" => Kind::Unsupported,
        // A body that arrived damaged is refused, not kept: send it again.
        "BadDigest" | "IncompleteBody" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" => {
            Kind::ShortBody
        }
        _ => match status {
            // In a redirect without a location, S3 says that the bucket lives elsewhere.
            301 | 307 | 308 => {
                let why = format!("{why}: the bucket is in another region; set the region");
                return Some(Cause::new(Kind::InvalidUrl, why).not_performed());
            }
            400..=499 if is_conflict(error, status, backend) => Kind::Conflict,
            401 => Kind::AuthenticationFailed,
            403 => Kind::PermissionDenied,
            408 => Kind::Timeout,
            413 => Kind::TooLarge,
            429 | 503 => Kind::Throttled,
            501 => Kind::Unsupported,
            507 => Kind::NoSpace,
            500..=599 => Kind::ServerFault,
            400 => Kind::Other,
            _ => return None,
        },
    };
    let cause = Cause::new(kind, why);
    // A refusal is certain; a failure of the store isn't.
    Some(if (400..500).contains(&status) {
        cause.not_performed()
    } else {
        cause
    })
}

/// S3 answers 409 to a conditional put that races another one, or a delete: neither a refusal nor a success. Azure and
/// Google answer 409 (Azure) and 412 to say that the object exists.
fn is_conflict(error: &object_store::Error, status: u16, backend: Backend) -> bool {
    match error {
        object_store::Error::AlreadyExists { source, .. } => {
            status == 409 && backend == Backend::S3 && source.downcast_ref::<object_store::Error>().is_none()
        }
        _ => status == 409,
    }
}

/// The `<Code>` of an S3 or Azure error document, or of one failure in a bulk delete.
fn error_code(text: &str) -> Option<&str> {
    let code = between(text, "<Code>", "</Code>").or_else(|| between(text, "(code: ", ")"));
    code.filter(|code| code.len() < WHY_LENGTH_MAX)
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    let (found, _) = rest.split_once(after)?;
    (!found.is_empty()).then_some(found)
}

fn full_text(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

fn innermost(error: &dyn StdError) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

fn find_source<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut current = Some(error);
    while let Some(error) = current {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        current = error.source();
    }
    None
}

/// One line of bounded length, with the query strings of URLs removed: they may hold signatures.
fn shorten(text: &str) -> String {
    let words = text
        .split_whitespace()
        .map(|word| match (word.contains("://"), word.split_once('?')) {
            (true, Some((before, _))) => format!("{before}?[removed]"),
            _ => word.to_owned(),
        });
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(WHY_LENGTH_MAX) {
        Some((end, _)) => format!("{}...", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic {
            store: "S3",
            source: text.to_owned().into(),
        }
    }

    #[test]
    fn answers_become_kinds() {
        let xml = |code: &str| {
            generic(&format!(
                "<Error><Code>{code}</Code><Message>why not</Message></Error>"
            ))
        };
        for (error, status, kind, maybe) in [
            (xml("SlowDown"), 503, Kind::Throttled, true),
            (xml("NoSuchBucket"), 404, Kind::NoSuchBucket, false),
            (xml("AccessDenied"), 403, Kind::PermissionDenied, false),
            (xml("ExpiredToken"), 400, Kind::AuthenticationFailed, false),
            (
                xml("RequestTimeTooSkewed"),
                403,
                Kind::AuthenticationFailed,
                false,
            ),
            (xml("BadDigest"), 400, Kind::ShortBody, false),
            (generic("x"), 500, Kind::ServerFault, true),
            (generic("x"), 301, Kind::InvalidUrl, false),
            (generic("(code: AccessDenied)"), 200, Kind::PermissionDenied, true),
        ] {
            let cause = classify(&error, status, Backend::S3);
            assert_eq!(
                (cause.kind, cause.maybe_performed && cause.retryable),
                (kind, maybe && kind.is_transient()),
                "{error}"
            );
        }
    }

    #[test]
    fn a_409_is_a_conflict_on_s3_and_an_existing_object_on_azure() {
        let conflict = object_store::Error::AlreadyExists {
            path: "k".into(),
            source: "409".into(),
        };
        assert_eq!(classify(&conflict, 409, Backend::S3).kind, Kind::Conflict);
        assert_eq!(classify(&conflict, 409, Backend::Azure).kind, Kind::AlreadyExists);
        let precondition = object_store::Error::Precondition {
            path: "k".into(),
            source: "412".into(),
        };
        let exists = object_store::Error::AlreadyExists {
            path: "k".into(),
            source: Box::new(precondition),
        };
        assert_eq!(classify(&exists, 412, Backend::S3).kind, Kind::AlreadyExists);
    }

    #[test]
    fn a_certificate_is_told_by_the_cause_and_not_by_the_url() {
        #[derive(Debug)]
        struct Sending(io::Error);
        impl std::fmt::Display for Sending {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("error sending request for url (https://certificate-backups.example/certificate)")
            }
        }
        impl StdError for Sending {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                Some(&self.0)
            }
        }
        for (why, is_final) in [
            ("connection reset by peer", false),
            ("invalid peer certificate: UnknownIssuer", true),
        ] {
            let http = HttpError::new(HttpErrorKind::Interrupted, Sending(io::Error::other(why)));
            let error = object_store::Error::Generic {
                store: "S3",
                source: Box::new(http),
            };
            let cause = classify(&error, 0, Backend::S3);
            assert_eq!(
                (cause.kind, cause.retryable),
                (Kind::Unreachable, !is_final),
                "{why}"
            );
        }
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let full = object_store::Error::Generic {
            store: "file",
            source: Box::new(io::Error::from_raw_os_error(28)),
        };
        assert_eq!(classify(&full, 0, Backend::File).kind, Kind::NoSpace);
    }

    #[test]
    fn signatures_in_urls_are_not_shown() {
        let cause = classify(
            &generic("GET https://a.blob/x?sig=hunter2 failed"),
            0,
            Backend::Azure,
        );
        assert!(!cause.why.contains("hunter2"), "{}", cause.why);
    }
}
