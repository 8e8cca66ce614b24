//! A directory of a web server. In: its URL. Out: a directory of the cache with the adapter's files,
//! all of the versions that the server named before anything was fetched. Web servers do not list, so
//! each file that tells something about the adapter is asked for.

use crate::cache::{Entry, Fetch, Wanted};
use crate::checksum::Checksum;
use crate::download::{Opened, RemoteFile};
use crate::error::{Fault, SourceError};
use crate::ranges;
use crate::web::{Answer, Ask, Follow, Reach, Web, busy};
use async_trait::async_trait;
use futures::future::try_join_all;
use http::header::IF_RANGE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use url::Url;
use weft_adapters::{adapter_files, telling_files};

/// What a server says of a file.
struct Found {
    name: &'static str,
    len: Option<u64>,
    tag: Option<String>,
    modified: Option<String>,
    checksum: Option<Checksum>,
}

struct WebFile {
    web: Web,
    reach: Reach,
    url: Url,
    len: u64,
    tag: Option<String>,
    place: String,
}

pub(crate) async fn fetch(
    web: &Web,
    url: &Url,
    reach: &Reach,
    entry: &Entry,
    fetch: &Fetch<'_>,
) -> Result<PathBuf, SourceError> {
    let looks = telling_files().into_iter().map(|name| look(web, url, reach, name, fetch.place));
    let found = match try_join_all(looks).await {
        Ok(found) => found.into_iter().flatten().collect::<Vec<_>>(),
        Err(error @ SourceError::Unreachable { .. }) => {
            let Some(current) = entry.current().await else { return Err(error) };
            tracing::warn!(%error, "using what was fetched before");
            return Ok(current);
        }
        Err(error) => return Err(error),
    };
    if found.is_empty() {
        return Err(SourceError::missing(fetch.place, "has no adapter_config.json"));
    }
    let is_there = |name: &str| found.iter().any(|file| file.name == name);
    let files = adapter_files(is_there)
        .map_err(|refusal| SourceError::unfit(fetch.place, refusal.reason()))?;
    let wanted = found.into_iter().filter(|file| files.contains(&file.name));
    let wanted = wanted.map(|file| {
        let Some(len) = file.len else {
            let reason = format!("does not say how large {} is (Content-Length)", file.name);
            return Err(SourceError::unfit(fetch.place, reason));
        };
        let remote = WebFile {
            web: web.clone(),
            reach: reach.clone(),
            url: file_url(url, file.name),
            len,
            tag: file.tag.clone(),
            place: fetch.place.to_owned(),
        };
        let version = file.tag.or(file.modified).unwrap_or_else(always_new);
        let (name, checksum, remote) = (file.name, file.checksum, Box::new(remote));
        Ok(Wanted { name, len, version, checksum, remote })
    });
    let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
    entry.bring(&wanted, fetch).await
}

/// The version of a file whose server names none.
fn always_new() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    format!("unversioned {}", since.map_or(0, |since| since.as_nanos()))
}

async fn look(
    web: &Web,
    url: &Url,
    reach: &Reach,
    name: &'static str,
    place: &str,
) -> Result<Option<Found>, SourceError> {
    let ask = Ask {
        method: Method::HEAD,
        url: file_url(url, name),
        headers: HeaderMap::new(),
        authorization: None,
        reach,
        follow: Follow::All,
        place,
    };
    let answer = web.send_patiently(&ask).await?;
    match answer.status {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
        status => return Err(refused(status, place)),
    }
    let len = answer.last("content-length").and_then(|text| text.parse().ok());
    let modified = answer.last("last-modified").map(str::to_owned);
    let checksum = Checksum::of_headers(&answer.headers, 0);
    Ok(Some(Found { name, len, tag: tag_of(&answer), modified, checksum }))
}

fn tag_of(answer: &Answer) -> Option<String> {
    answer.last("etag").map(str::to_owned)
}

fn refused(status: StatusCode, place: &str) -> SourceError {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let reason = format!(
                "answers with status {status}: an https:// source must be readable without a login"
            );
            SourceError::denied(place, reason)
        }
        _ => SourceError::unfit(place, format!("answers HEAD with status {status}")),
    }
}

fn file_url(directory: &Url, name: &str) -> Url {
    let mut url = directory.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().push(name);
    }
    url
}

#[async_trait]
impl RemoteFile for WebFile {
    async fn open(&self, offset: u64) -> Result<Opened, Fault> {
        let mut headers = HeaderMap::new();
        // Without a strong tag nobody could say whether the rest is of the same version.
        let strong = self.tag.as_deref().filter(|tag| !tag.starts_with("W/"));
        if let Some(value) = strong.and_then(|tag| HeaderValue::from_str(tag).ok()) {
            ranges::ask_from(&mut headers, offset);
            headers.insert(IF_RANGE, value);
        }
        let ask = Ask {
            method: Method::GET,
            url: self.url.clone(),
            headers,
            authorization: None,
            reach: &self.reach,
            follow: Follow::All,
            place: &self.place,
        };
        let answer = busy(self.web.send(&ask).await?)?;
        if answer.status.is_success() && tag_of(&answer) != self.tag {
            return Err(SourceError::Changed { place: self.place.clone() }.into());
        }
        ranges::opened(answer, self.len, &self.place)
    }
}
