//! HTTP for all sources. In: a method, a URL and headers. Out: an answer whose body is still to come.
//! Decides how long to wait, which redirects to follow, who gets the token, and which addresses may be
//! called. Knows no protocol above HTTP.

use crate::config::Patience;
use crate::error::{Fault, SourceError};
use crate::guard::{self, Lookup};
use crate::location::is_this_machine;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::header::{AUTHORIZATION, LOCATION, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::RootCertStore;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use url::Url;

const MAX_REDIRECTS: usize = 8;

/// Descriptions of repositories are smaller.
const MAX_JSON_BYTES: usize = 16 << 20;

/// Servers may not send us away for longer.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(20);

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;
/// The body of a request.
pub(crate) type Sent = UnsyncBoxBody<Bytes, BoxError>;
/// The body of an answer.
pub(crate) type Received = hyper::body::Incoming;
/// A body as it comes; an error is a sentence.
pub(crate) type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>>;

type Http = Client<HttpsConnector<HttpConnector<Lookup>>, Sent>;

/// A client, cheap to clone.
#[derive(Clone)]
pub(crate) struct Web {
    anywhere: Http,
    public: Http,
    pub(crate) patience: Patience,
}

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web").field("patience", &self.patience).finish_non_exhaustive()
    }
}

/// Which addresses may be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The operator named the place.
    Anywhere,
    /// A request did: what anybody could call, and hosts that the operator named, by origin.
    Public { and: Option<url::Origin> },
}

/// Which redirects are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follow {
    All,
    /// Only to the same host: others are the answer.
    SameOrigin,
}

/// What to ask.
#[derive(Clone, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    /// Sent to the URL's origin only.
    pub(crate) authorization: Option<&'a HeaderValue>,
    pub(crate) reach: &'a Reach,
    pub(crate) follow: Follow,
    /// For the errors.
    pub(crate) place: &'a str,
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Headers of the redirects on the way.
    hops: Vec<HeaderMap>,
    body: Received,
    silence: Duration,
}

impl Answer {
    /// A header of the first answer on the way that has it.
    pub(crate) fn first(&self, name: &str) -> Option<&str> {
        let mut all = self.hops.iter().chain([&self.headers]);
        all.find_map(|headers| headers.get(name))?.to_str().ok()
    }

    /// A header of the last answer.
    pub(crate) fn last(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(crate) fn chunks(self) -> Chunks {
        patient_chunks(
            self.body.into_data_stream().map(|chunk| chunk.map_err(|e| chain(&e))),
            self.silence,
        )
    }

    /// The body as JSON.
    pub(crate) async fn json<T: DeserializeOwned>(self, place: &str) -> Result<T, Fault> {
        let mut chunks = self.chunks();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.next().await {
            bytes.extend_from_slice(&chunk.map_err(|reason| Fault::Passing(reason, None))?);
            if bytes.len() > MAX_JSON_BYTES {
                let reason = "describes itself in more than 16 MiB, which no repository needs";
                return Err(SourceError::unfit(place, reason).into());
            }
        }
        serde_json::from_slice(&bytes).map_err(|error| {
            let reason = format!("answers with something else than its API says: {error}");
            SourceError::unfit(place, reason).into()
        })
    }
}

/// Ends with an error where nothing comes for too long.
pub(crate) fn patient_chunks(
    chunks: impl Stream<Item = Result<Bytes, String>> + Send + 'static,
    silence: Duration,
) -> Chunks {
    let next = move |mut chunks: Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>>| async move {
        match tokio::time::timeout(silence, chunks.next()).await {
            Ok(chunk) => chunk.map(|chunk| (chunk, chunks)),
            Err(_) => {
                let quiet = Err(format!("nothing came for {} s", silence.as_secs_f64()));
                let none: Chunks = Box::pin(futures::stream::empty());
                Some((quiet, none))
            }
        }
    };
    Box::pin(futures::stream::unfold(Box::pin(chunks) as Chunks, next))
}

impl Web {
    pub(crate) fn new(patience: Patience) -> Result<Self, String> {
        let tls = tls()?;
        let client = |only_public| {
            let mut http = HttpConnector::new_with_resolver(Lookup { only_public });
            http.enforce_http(false);
            http.set_connect_timeout(Some(patience.connect));
            let https = HttpsConnectorBuilder::new()
                .with_tls_config(tls.clone())
                .https_or_http()
                .enable_http1()
                .wrap_connector(http);
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(Duration::from_secs(20))
                .build(https)
        };
        Ok(Self { anywhere: client(false), public: client(true), patience })
    }

    /// Asks once, and follows redirects.
    pub(crate) async fn send(&self, ask: &Ask<'_>) -> Result<Answer, Fault> {
        let (mut url, mut hops) = (ask.url.clone(), Vec::new());
        let origin = ask.url.origin();
        loop {
            let mut request = Request::builder().method(ask.method.clone()).uri(url.as_str());
            if let Some(headers) = request.headers_mut() {
                headers.extend(ask.headers.clone());
                headers.insert(USER_AGENT, HeaderValue::from_static("weft"));
                if let Some(token) = ask.authorization.filter(|_| url.origin() == origin) {
                    headers.insert(AUTHORIZATION, token.clone());
                }
            }
            let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
            let request = request.body(body).map_err(|error| {
                SourceError::unfit(
                    ask.place,
                    format!("has an address that cannot be asked: {error}"),
                )
            })?;
            let client = self.client(ask, &url)?;
            let answer = self.call(client, request, ask.place).await?;
            let (head, body) = answer.into_parts();
            let target = head.headers.get(LOCATION).filter(|_| head.status.is_redirection());
            let next = target.map(|target| next_url(&url, target, ask.place)).transpose()?;
            let is_followed = |next: &Url| ask.follow == Follow::All || next.origin() == origin;
            match next.filter(is_followed) {
                Some(next) if hops.len() < MAX_REDIRECTS => {
                    hops.push(head.headers);
                    url = next;
                }
                Some(_) => {
                    let reason = format!("redirects more than {MAX_REDIRECTS} times");
                    return Err(SourceError::unfit(ask.place, reason).into());
                }
                None => {
                    let (status, headers) = (head.status, head.headers);
                    let silence = self.patience.silence;
                    return Ok(Answer { status, headers, hops, body, silence });
                }
            }
        }
    }

    /// Asks until there is an answer other than that the server is busy.
    pub(crate) async fn send_patiently(&self, ask: &Ask<'_>) -> Result<Answer, SourceError> {
        let mut retries = Retries::new(self.patience, ask.place);
        loop {
            match self.send(ask).await.and_then(busy) {
                Ok(answer) => return Ok(answer),
                Err(fault) => retries.wait_after(fault).await?,
            }
        }
    }

    /// Asks as it stands, for whoever signs requests; follows nothing.
    pub(crate) async fn send_raw(
        &self,
        request: Request<Sent>,
        place: &str,
    ) -> Result<Response<Received>, Fault> {
        self.call(&self.anywhere, request, place).await
    }

    fn client(&self, ask: &Ask<'_>, url: &Url) -> Result<&Http, Fault> {
        let Reach::Public { and } = ask.reach else { return Ok(&self.anywhere) };
        if and.as_ref().is_some_and(|origin| url.origin() == *origin) {
            return Ok(&self.anywhere);
        }
        // Addresses are not looked up, so they are judged here.
        let is_public = match url.host() {
            Some(url::Host::Ipv4(address)) => guard::is_public(address.into()),
            Some(url::Host::Ipv6(address)) => guard::is_public(address.into()),
            _ => true,
        };
        if is_public { Ok(&self.public) } else { Err(not_public(ask.place).into()) }
    }

    async fn call(
        &self,
        client: &Http,
        request: Request<Sent>,
        place: &str,
    ) -> Result<Response<Received>, Fault> {
        let patience = self.patience.connect + self.patience.silence;
        match tokio::time::timeout(patience, client.request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if guard::is_not_public(&error) => Err(not_public(place).into()),
            Ok(Err(error)) => Err(Fault::Passing(said(&error), None)),
            Err(_) => {
                let reason = format!("no answer within {} s", patience.as_secs_f64());
                Err(Fault::Passing(reason, None))
            }
        }
    }
}

/// Failures in a row.
#[derive(Debug)]
pub(crate) struct Retries<'a> {
    patience: Patience,
    place: &'a str,
    num_retries: u32,
}

impl<'a> Retries<'a> {
    pub(crate) fn new(patience: Patience, place: &'a str) -> Self {
        Self { patience, place, num_retries: 0 }
    }

    /// There was a success between.
    pub(crate) fn begin_again(&mut self) {
        self.num_retries = 0;
    }

    /// Waits until it may be tried again, or says why it may not.
    pub(crate) async fn wait_after(&mut self, fault: Fault) -> Result<(), SourceError> {
        let (reason, wait) = match fault {
            Fault::Final(error) => return Err(error),
            Fault::Passing(reason, wait) => (reason, wait),
        };
        if self.num_retries >= self.patience.max_retries {
            return Err(SourceError::unreachable(self.place, reason));
        }
        tracing::debug!(source = self.place, reason, "tried again");
        let delay = self.patience.delay(self.num_retries);
        tokio::time::sleep(wait.unwrap_or(delay).max(delay)).await;
        self.num_retries += 1;
        Ok(())
    }
}

/// A server that is busy is asked again.
pub(crate) fn busy(answer: Answer) -> Result<Answer, Fault> {
    let status = answer.status;
    let is_busy = status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
    if !is_busy {
        return Ok(answer);
    }
    let wait =
        answer.last("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
    Err(Fault::Passing(format!("status {status}"), wait.map(|wait| wait.min(MAX_RETRY_AFTER))))
}

fn not_public(place: &str) -> SourceError {
    let reason = "is on this machine or in a private network, where requests may not send this \
                  server unless an --adapter-source-allow names the host";
    SourceError::not_allowed(place, reason)
}

/// Where a redirect leads, if it may lead there: never to another scheme, but that plain HTTP may
/// become HTTPS. Its text can hold a signature: it is never shown.
fn next_url(url: &Url, target: &HeaderValue, place: &str) -> Result<Url, SourceError> {
    let refuse = |reason: String| Err(SourceError::unfit(place, reason));
    let Some(next) = target.to_str().ok().and_then(|target| url.join(target).ok()) else {
        return refuse("redirects to what is no address".to_owned());
    };
    let is_plain_here = next.scheme() == "http"
        && url.scheme() == "http"
        && (next.origin() == url.origin() || is_this_machine(&next));
    if next.scheme() != "https" && !is_plain_here {
        return refuse(format!("redirects to {}://, which is not followed", next.scheme()));
    }
    if !next.username().is_empty() || next.password().is_some() {
        return refuse("redirects with a user name, which is not followed".to_owned());
    }
    Ok(next)
}

/// The system's certificates, or Mozilla's where the system has none.
fn tls() -> Result<rustls::ClientConfig, String> {
    // Read once: there are many.
    static ROOTS: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        Arc::new(roots)
    });
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(Arc::clone(&ROOTS)).with_no_client_auth())
}

fn said(error: &ClientError) -> String {
    let verb = if error.is_connect() { "cannot connect" } else { "the exchange broke off" };
    format!("{verb}: {}", chain(error))
}

/// The innermost words of an error: the outer ones only say that there are some.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_never_leave_https() {
        let next = |from: &str, to: &'static str| {
            next_url(&Url::parse(from).unwrap(), &HeaderValue::from_static(to), "x")
                .map(|url| url.to_string())
                .map_err(|error| error.to_string())
        };
        let https = "https://a/b/c";
        assert_eq!(next(https, "d").unwrap(), "https://a/b/d");
        assert_eq!(next(https, "https://other/d").unwrap(), "https://other/d");
        assert_eq!(next("http://127.0.0.1/a", "https://other/d").unwrap(), "https://other/d");
        assert!(next("http://127.0.0.1/a", "http://127.0.0.1:9/d").is_ok());
        for (from, to) in [
            (https, "http://a/b"),
            (https, "file:///etc/passwd"),
            (https, "ftp://a/b"),
            ("http://127.0.0.1/a", "http://other/d"),
            (https, "https://user:secret@a/b"),
        ] {
            let said = next(from, to).unwrap_err();
            assert!(said.contains("not followed") && !said.contains("secret"), "{said}");
        }
    }
}
