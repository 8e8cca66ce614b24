//! A web server with files by path, on a loopback port. Answers HEAD, GET and Range; lists buckets as
//! S3 does; does what it is told to do wrong, once each; and remembers who asked for what.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;
use futures::StreamExt;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use tokio::task::JoinHandle;

/// What goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Wrong {
    Status(u16, Vec<(&'static str, &'static str)>),
    /// Ends after so many bytes of the body, as if the connection had broken.
    Truncate(usize),
    /// Sends so many bytes of the body and then no more.
    Stall(usize),
    Redirect(String),
    /// Sends all, whatever range was asked for.
    IgnoreRange,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    pub(crate) headers: Vec<(&'static str, String)>,
    /// Always sends to there instead, with these headers.
    pub(crate) redirect: Option<String>,
}

/// One request that came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

#[derive(Debug, Default)]
struct Inside {
    files: BTreeMap<String, File>,
    wrong: BTreeMap<(Method, String), VecDeque<Wrong>>,
    asked: Vec<Asked>,
}

pub(crate) struct Shelf {
    pub(crate) port: u16,
    inside: Arc<Mutex<Inside>>,
    task: JoinHandle<()>,
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shelf {
    pub(crate) async fn start() -> Self {
        let inside = Arc::new(Mutex::new(Inside::default()));
        let app = Router::new().fallback(answer).with_state(Arc::clone(&inside));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { port, inside, task }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn put(&self, path: impl Into<String>, file: File) {
        self.inside.lock().unwrap().files.insert(path.into(), file);
    }

    pub(crate) fn remove(&self, path: &str) {
        self.inside.lock().unwrap().files.remove(path).unwrap();
    }

    /// The next request of that kind goes wrong.
    pub(crate) fn wrong(&self, method: Method, path: &str, wrong: Wrong) {
        let mut inside = self.inside.lock().unwrap();
        inside.wrong.entry((method, path.to_owned())).or_default().push_back(wrong);
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.inside.lock().unwrap().asked.clone()
    }

    /// Of each GET for a path that ends like this, the range.
    pub(crate) fn ranges(&self, end: &str) -> Vec<Option<String>> {
        let asked = self.asked();
        let gets = asked.iter().filter(|one| one.method == Method::GET && one.path.ends_with(end));
        gets.map(|one| one.range.clone()).collect()
    }

    /// Nobody answers on its port any more.
    pub(crate) async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

async fn answer(State(inside): State<Arc<Mutex<Inside>>>, request: Request) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let (path, headers) = (uri.path().to_owned(), request.headers().clone());
    let text = |name: HeaderName| Some(headers.get(name)?.to_str().unwrap().to_owned());
    let mut inside = inside.lock().unwrap();
    inside.asked.push(Asked {
        method: method.clone(),
        path: path.clone(),
        range: text(header::RANGE),
        authorization: text(header::AUTHORIZATION),
    });
    let wrong = inside.wrong.get_mut(&(method.clone(), path.clone())).and_then(VecDeque::pop_front);
    if let Some(Wrong::Status(status, headers)) = &wrong {
        return respond(*status, headers.iter().map(|(n, v)| (*n, (*v).to_owned())), Body::empty());
    }
    if let Some(Wrong::Redirect(target)) = &wrong {
        return respond(302, [("location", target.clone())], Body::empty());
    }
    if let Some(listing) = listing(&inside, &uri) {
        return respond(200, [("content-type", "application/xml".to_owned())], listing.into());
    }
    let Some(file) = inside.files.get(&path).cloned() else {
        return respond(404, [], Body::empty());
    };
    if let Some(target) = file.redirect {
        let headers = file.headers.into_iter().chain([("location", target)]);
        return respond(302, headers, Body::empty());
    }
    send(&method, &headers, file, wrong)
}

fn send(method: &Method, asked: &HeaderMap, file: File, wrong: Option<Wrong>) -> Response {
    let etag = file.headers.iter().find(|(name, _)| *name == "etag").map(|(_, tag)| tag.as_str());
    let matches = |name: HeaderName| {
        asked.get(name).is_none_or(|value| Some(value.to_str().unwrap()) == etag)
    };
    if !matches(header::IF_MATCH) {
        return respond(412, [], Body::empty());
    }
    let range = asked.get(header::RANGE).filter(|_| matches(header::IF_RANGE));
    let start = range.map(|value| {
        let text = value.to_str().unwrap().strip_prefix("bytes=").unwrap();
        text.split_once('-').unwrap().0.parse::<usize>().unwrap()
    });
    let start = start.filter(|_| !matches!(wrong, Some(Wrong::IgnoreRange)));
    let total = file.bytes.len();
    let mut headers = file.headers;
    let (status, first) = match start {
        Some(first) if first >= total => return respond(416, [], Body::empty()),
        Some(first) => {
            headers.push(("content-range", format!("bytes {first}-{}/{total}", total - 1)));
            (206, first)
        }
        None => (200, 0),
    };
    headers.push(("content-length", (total - first).to_string()));
    let rest = file.bytes[first..].to_vec();
    let body = match wrong {
        _ if method == Method::HEAD => Body::empty(),
        Some(Wrong::Truncate(len)) => {
            let broken = futures::stream::once(async {
                // Else what came before would be lost with the connection.
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                Err(std::io::Error::other("broken"))
            });
            Body::from_stream(part(rest, len).chain(broken))
        }
        Some(Wrong::Stall(len)) => {
            Body::from_stream(part(rest, len).chain(futures::stream::pending()))
        }
        _ => rest.into(),
    };
    respond(status, headers, body)
}

fn part(
    bytes: Vec<u8>,
    len: usize,
) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
    futures::stream::once(async move { Ok(Bytes::from(bytes).slice(..len)) })
}

fn respond(
    status: u16,
    headers: impl IntoIterator<Item = (&'static str, String)>,
    body: Body,
) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        let value = HeaderValue::try_from(value).unwrap();
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
    response
}

/// S3's ListObjectsV2 of a bucket, with a delimiter.
fn listing(inside: &Inside, uri: &Uri) -> Option<String> {
    let query = uri.query()?;
    let fields = url::form_urlencoded::parse(query.as_bytes()).collect::<BTreeMap<_, _>>();
    fields.get("list-type").filter(|kind| *kind == "2")?;
    let prefix = fields.get("prefix").map_or("", |prefix| prefix);
    let bucket = format!("{}/", uri.path().trim_end_matches('/'));
    let mut xml =
        "<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>false</IsTruncated>".to_owned();
    for (path, file) in &inside.files {
        let key = path.strip_prefix(&bucket).unwrap_or_default();
        let name = key.strip_prefix(prefix).unwrap_or_default();
        if !name.is_empty() && !name.contains('/') {
            let etag = &file.headers.iter().find(|(name, _)| *name == "etag").unwrap().1;
            write!(
                xml,
                "<Contents><Key>{key}</Key><Size>{}</Size><ETag>{}</ETag>\
                 <LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>",
                file.bytes.len(),
                etag.replace('"', "&quot;")
            )
            .unwrap();
        }
    }
    Some(xml + "</ListBucketResult>")
}
