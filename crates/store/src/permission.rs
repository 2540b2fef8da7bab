//! The permission that a refused request wanted, by the store's own name for it, so that nobody has to guess.

use crate::counts::Request;

/// What a policy would have to allow, and on what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Permission {
    /// `s3:PutObject`
    pub(crate) action: &'static str,
    /// `arn:aws:s3:::bucket/prefix/*`
    pub(crate) resource: String,
}

/// The permission for a request to the store at `url`; none where permissions have no names (directories) or go by roles
/// (Azure).
pub(crate) fn permission(request: Request, url: &str) -> Option<Permission> {
    let (scheme, rest) = url.split_once("://")?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    // <https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html>
    let (action, resource) = match (scheme, request) {
        ("s3", Request::List) => ("s3:ListBucket", format!("arn:aws:s3:::{bucket}")),
        ("s3", request) => {
            let action = match request {
                Request::Put => "s3:PutObject",
                Request::Delete => "s3:DeleteObject",
                _ => "s3:GetObject",
            };
            let all = format!("{prefix}/*");
            let all = all.trim_start_matches('/');
            (action, format!("arn:aws:s3:::{bucket}/{all}"))
        }
        // <https://cloud.google.com/storage/docs/access-control/iam-permissions>
        ("gs", request) => {
            let action = match request {
                Request::Put => "storage.objects.create",
                Request::Delete => "storage.objects.delete",
                Request::List => "storage.objects.list",
                Request::Get | Request::Head => "storage.objects.get",
            };
            (action, format!("the bucket {bucket}"))
        }
        _ => return None,
    };
    Some(Permission { action, resource })
}

/// The action that AWS itself names: `User: ... is not authorized to perform: kms:Decrypt on resource: ...`.
pub(crate) fn named_by_aws(why: &str) -> Option<&str> {
    let (_, rest) = why.split_once("not authorized to perform: ")?;
    rest.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_have_their_stores_names() {
        for (request, url, action, resource) in [
            (Request::Put, "s3://b/a/c", "s3:PutObject", "arn:aws:s3:::b/a/c/*"),
            (Request::Head, "s3://b", "s3:GetObject", "arn:aws:s3:::b/*"),
            (Request::List, "s3://b/a", "s3:ListBucket", "arn:aws:s3:::b"),
            (
                Request::Delete,
                "gs://b/a",
                "storage.objects.delete",
                "the bucket b",
            ),
        ] {
            let found = permission(request, url).unwrap();
            assert_eq!((found.action, found.resource.as_str()), (action, resource));
        }
        assert_eq!(permission(Request::Put, "file:///srv"), None);
    }

    #[test]
    fn what_aws_names_is_taken_from_its_words() {
        let why = "the store answered 403 AccessDenied: User: arn:aws:iam::1:user/u is not authorized to perform: \
                   kms:GenerateDataKey on resource: arn:aws:kms:k because no identity-based policy allows it";
        assert_eq!(named_by_aws(why), Some("kms:GenerateDataKey"));
        assert_eq!(
            named_by_aws("the store answered 403 AccessDenied: Access Denied"),
            None
        );
    }
}
