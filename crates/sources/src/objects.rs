//! Object stores: S3, Google Cloud Storage, Azure. In: a bucket and a prefix. Out: a directory of the
//! cache with the adapter's files, all of the versions that the store listed. Signing, credentials and
//! listing are `object_store`'s; its HTTP goes through [`crate::web`].

use crate::cache::{Entry, Fetch, Wanted};
use crate::checksum::Checksum;
use crate::config::Patience;
use crate::download::{Opened, RemoteFile};
use crate::error::{Fault, SourceError};
use crate::location::Store;
use crate::web::{Sent, Web, chain, patient_chunks};
use async_trait::async_trait;
use futures::StreamExt;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path as ObjectPath;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore, RetryConfig,
};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use weft_adapters::adapter_files;

/// What is wanted of which store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ObjectsPlace<'a> {
    pub(crate) store: Store,
    pub(crate) bucket: &'a str,
    pub(crate) prefix: &'a [String],
    /// As the environment variables of these names.
    pub(crate) settings: &'a [(String, String)],
}

pub(crate) async fn fetch(
    web: &Web,
    at: ObjectsPlace<'_>,
    entry: &Entry,
    fetch: &Fetch<'_>,
) -> Result<PathBuf, SourceError> {
    let seen = Seen::default();
    let connector =
        Connector { web: web.clone(), seen: seen.clone(), place: fetch.place.to_owned() };
    let store = open(at, connector, fetch.patience).map_err(|error| {
        SourceError::denied(fetch.place, format!("cannot be asked: {}", said(&error)))
    })?;
    let prefix = ObjectPath::from_iter(at.prefix.iter().map(String::as_str));
    let listed = match store.list_with_delimiter(Some(&prefix)).await {
        Ok(listed) => listed.objects,
        Err(error) => match fault(error, at.store, seen.last().0, fetch.place) {
            Fault::Final(error) => return Err(error),
            Fault::Passing(reason, _) => {
                let Some(current) = entry.current().await else {
                    return Err(SourceError::unreachable(fetch.place, reason));
                };
                tracing::warn!(source = fetch.place, reason, "using what was fetched before");
                return Ok(current);
            }
        },
    };
    if listed.is_empty() {
        return Err(SourceError::missing(fetch.place, "holds no objects"));
    }
    let object = |name: &str| listed.iter().find(|one| one.location.filename() == Some(name));
    let files = adapter_files(|name| object(name).is_some())
        .map_err(|refusal| SourceError::unfit(fetch.place, refusal.reason()))?;
    let wanted = files.into_iter().filter_map(|name| {
        let meta = object(name)?.clone();
        let version = meta.e_tag.clone().unwrap_or_else(|| meta.last_modified.to_rfc3339());
        let remote = ObjectFile {
            store: Arc::clone(&store),
            kind: at.store,
            meta: meta.clone(),
            seen: seen.clone(),
            silence: fetch.patience.silence,
            place: fetch.place.to_owned(),
        };
        let (len, remote) = (meta.size, Box::new(remote));
        Some(Wanted { name, len, version, checksum: None, remote })
    });
    entry.bring(&wanted.collect::<Vec<_>>(), fetch).await
}

fn open(
    at: ObjectsPlace<'_>,
    connector: Connector,
    patience: &Patience,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: patience.first_delay,
            max_backoff: Duration::from_secs(8),
            base: 2.0,
        },
        max_retries: patience.max_retries as usize,
        retry_timeout: Duration::from_secs(120),
    };
    let settings = at.settings.iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
    Ok(match at.store {
        Store::S3 => {
            let mut builder = AmazonS3Builder::new();
            for (name, value) in settings.filter(|(name, _)| name.starts_with("aws_")) {
                if let Ok(key) = name.parse::<AmazonS3ConfigKey>() {
                    builder = builder.with_config(key, value);
                }
            }
            let builder = builder.with_bucket_name(at.bucket).with_retry(retry);
            Arc::new(builder.with_http_connector(connector).build()?)
        }
        Store::Gcs => {
            let mut builder = GoogleCloudStorageBuilder::new();
            for (name, value) in settings.filter(|(name, _)| name.starts_with("google_")) {
                if let Ok(key) = name.parse::<GoogleConfigKey>() {
                    builder = builder.with_config(key, value);
                }
            }
            let builder = builder.with_bucket_name(at.bucket).with_retry(retry);
            Arc::new(builder.with_http_connector(connector).build()?)
        }
        Store::Azure => {
            let mut builder = MicrosoftAzureBuilder::new();
            for (name, value) in settings.filter(|(name, _)| name.starts_with("azure_")) {
                if let Ok(key) = name.parse::<AzureConfigKey>() {
                    builder = builder.with_config(key, value);
                }
            }
            let builder = builder.with_container_name(at.bucket).with_retry(retry);
            Arc::new(builder.with_http_connector(connector).build()?)
        }
    })
}

/// What the store's answers said that `object_store` does not pass on.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<(StatusCode, HeaderMap)>>);

impl Seen {
    fn note(&self, status: StatusCode, headers: &HeaderMap) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (status, headers.clone());
    }

    /// The last answer.
    fn last(&self) -> (StatusCode, HeaderMap) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct ObjectFile {
    store: Arc<dyn ObjectStore>,
    kind: Store,
    meta: ObjectMeta,
    seen: Seen,
    silence: Duration,
    place: String,
}

impl ObjectFile {
    /// Of the object, by what the answer to its GET said.
    fn checksum(&self, offset: u64) -> Option<Checksum> {
        let (_, headers) = self.seen.last();
        let plain = |name: &str| match headers.get(name) {
            Some(value) => value == "AES256",
            None => true,
        };
        let is_md5 = self.kind == Store::S3
            && plain("x-amz-server-side-encryption")
            && !headers.contains_key("x-amz-server-side-encryption-customer-algorithm");
        let tag = self.meta.e_tag.as_deref().map(|tag| tag.trim_matches('"'));
        let md5 = || Checksum::of_plain_md5(tag.filter(|_| is_md5)?);
        Checksum::of_headers(&headers, offset).or_else(md5)
    }
}

#[async_trait]
impl RemoteFile for ObjectFile {
    async fn open(&self, offset: u64) -> Result<Opened, Fault> {
        let options = GetOptions {
            range: (offset > 0).then_some(GetRange::Offset(offset)),
            if_match: self.meta.e_tag.clone(),
            ..GetOptions::default()
        };
        let got = self.store.get_opts(&self.meta.location, options).await;
        let got = got.map_err(|error| fault(error, self.kind, self.seen.last().0, &self.place))?;
        if got.meta.size != self.meta.size {
            return Err(SourceError::Changed { place: self.place.clone() }.into());
        }
        let offset = got.range.start;
        let checksum = self.checksum(offset);
        let chunks = got.into_stream().map(|chunk| chunk.map_err(|error| said(&error)));
        Ok(Opened { offset, checksum, chunks: patient_chunks(chunks, self.silence) })
    }
}

/// What an error means; `status` is that of the last answer, which it does not always say.
fn fault(error: object_store::Error, store: Store, status: StatusCode, place: &str) -> Fault {
    use object_store::Error as E;
    let settings = match store {
        Store::S3 => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_SKIP_SIGNATURE=true)",
        Store::Gcs => "GOOGLE_SERVICE_ACCOUNT (or GOOGLE_SKIP_SIGNATURE=true)",
        Store::Azure => "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    };
    let denied = || SourceError::denied(place, format!("may not be read: see {settings}"));
    match error {
        E::NotFound { .. } => SourceError::missing(place, "does not exist").into(),
        E::Precondition { .. } | E::NotModified { .. } => {
            SourceError::Changed { place: place.to_owned() }.into()
        }
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => denied().into(),
        _ if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => denied().into(),
        _ if status == StatusCode::NOT_FOUND => {
            SourceError::missing(place, "does not exist").into()
        }
        error => Fault::Passing(said(&error), None),
    }
}

/// An error's words, without queries: they may hold signatures.
fn said(error: &object_store::Error) -> String {
    let words = error.to_string();
    let mut said = String::with_capacity(words.len());
    for (index, part) in words.split('?').enumerate() {
        let end = part.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(part.len());
        said.push_str(if index == 0 { part } else { &part[end..] });
    }
    said
}

/// Brings `object_store` and [`Web`] together.
#[derive(Clone, Debug)]
struct Connector {
    web: Web,
    seen: Seen,
    place: String,
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let request = request.map(|body| -> Sent {
            body.map_err(|error| -> crate::web::BoxError { Box::new(error) }).boxed_unsync()
        });
        let answer =
            self.web.send_raw(request, &self.place).await.map_err(|fault| match fault {
                Fault::Passing(reason, _) => {
                    HttpError::new(HttpErrorKind::Connect, std::io::Error::other(reason))
                }
                Fault::Final(error) => HttpError::new(HttpErrorKind::Unknown, error),
            })?;
        self.seen.note(answer.status(), answer.headers());
        let broken = |error: hyper::Error| {
            HttpError::new(HttpErrorKind::Interrupted, std::io::Error::other(chain(&error)))
        };
        Ok(answer.map(|body| HttpResponseBody::new(body.map_err(broken))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_do_not_show_in_errors() {
        let source = "GET https://h/b?sig=secret&x=1 failed, then \"https://h/c?token=secret\" too";
        let error = object_store::Error::Generic { store: "x", source: source.into() };
        let said = said(&error);
        assert!(!said.contains("secret"), "{said}");
        assert!(said.contains("https://h/b failed") && said.contains("too"), "{said}");
    }
}
