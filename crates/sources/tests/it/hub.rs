//! The Hugging Face Hub's protocol, and the cache shared with its tools.

use crate::shelf::{File, Shelf, Wrong};
use crate::world::{CONFIG, Files, TENSORS, World, git_blob, sha256};
use axum::http::Method;
use std::fs;
use weft_sources::SourceError;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secret";

/// A hub with one repository, `acme/sql`, whose large file lies on another host.
struct Hub {
    world: World,
    shelf: Shelf,
    files: Files,
}

impl Hub {
    async fn start() -> Self {
        let mut world = World::new();
        let shelf = Shelf::start().await;
        world.config.hub.endpoint = shelf.url("");
        let hub = Self { world, shelf, files: Files::new(1) };
        hub.publish("main", COMMIT, "", &hub.files);
        hub
    }

    /// Makes `revision` a commit with these files in a folder.
    fn publish(&self, revision: &str, commit: &str, folder: &str, files: &Files) {
        let names: Vec<_> =
            files.each().iter().map(|(name, _)| format!("{folder}{name}")).collect();
        self.describe(revision, commit, &names);
        for (name, bytes) in files.each() {
            let path = format!("/acme/sql/resolve/{commit}/{folder}{name}");
            let commit = ("x-repo-commit", commit.to_owned());
            if name == CONFIG {
                let headers = vec![("etag", format!("\"{}\"", git_blob(bytes))), commit];
                self.shelf.put(path, File { bytes: bytes.to_vec(), headers, redirect: None });
                continue;
            }
            let sha256 = sha256(bytes);
            let headers = vec![
                ("x-linked-etag", format!("\"{sha256}\"")),
                ("x-linked-size", bytes.len().to_string()),
                commit,
            ];
            let cdn = format!("/cdn/{sha256}");
            let redirect = Some(format!("http://localhost:{}{cdn}", self.shelf.port));
            self.shelf.put(path, File { bytes: Vec::new(), headers, redirect });
            let headers = vec![("etag", "\"another\"".to_owned())];
            self.shelf.put(cdn, File { bytes: bytes.to_vec(), headers, redirect: None });
        }
    }

    fn describe(&self, revision: &str, commit: &str, names: &[String]) {
        let siblings: Vec<_> =
            names.iter().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": commit, "siblings": siblings, "private": false });
        let path = format!("/api/models/acme/sql/revision/{}", revision.replace('/', "%2F"));
        self.shelf.put(path, File { bytes: body.to_string().into(), ..File::default() });
    }

    fn cdn(&self) -> String {
        format!("/cdn/{}", sha256(&self.files.tensors))
    }
}

#[tokio::test]
async fn a_repository_is_fetched_into_the_layout_of_huggingface_hub() {
    let hub = Hub::start().await;
    let path = hub.world.fetch("hf://acme/sql").await.unwrap();
    hub.files.assert_in(&path);
    let repository = hub.world.path("hub/models--acme--sql");
    assert_eq!(path, repository.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    let link = fs::read_link(path.join(TENSORS)).unwrap();
    let blob = sha256(&hub.files.tensors);
    assert_eq!(link, std::path::Path::new("../../blobs").join(&blob));
    let names: Vec<_> = fs::read_dir(repository.join("blobs")).unwrap().collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(repository.join("blobs").join(git_blob(&hub.files.config)).is_file());
}

#[tokio::test]
async fn a_second_start_asks_only_which_commit_it_is_and_a_commit_not_even_that() {
    let hub = Hub::start().await;
    let first = hub.world.fetch("hf://acme/sql").await.unwrap();
    let num_asked = hub.shelf.asked().len();
    assert_eq!(hub.world.fetch("hf://acme/sql").await.unwrap(), first);
    assert_eq!(hub.shelf.asked().len(), num_asked + 1);
    let by_commit = format!("hf://acme/sql@{COMMIT}");
    assert_eq!(hub.world.fetch(&by_commit).await.unwrap(), first);
    assert_eq!(hub.shelf.asked().len(), num_asked + 1);
}

#[tokio::test]
async fn without_a_hub_the_cache_serves_also_what_other_tools_have_fetched() {
    let Hub { mut world, shelf, files } = Hub::start().await;
    shelf.stop().await;
    let said = world.refused("hf://acme/sql").await;
    assert!(said.contains("does not answer"), "{said}");
    let repository = world.path("hub/models--acme--sql");
    let snapshot = repository.join("snapshots").join(COMMIT);
    for dir in ["refs", "blobs", &format!("snapshots/{COMMIT}")] {
        fs::create_dir_all(repository.join(dir)).unwrap();
    }
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    for (name, bytes) in files.each() {
        fs::write(repository.join("blobs").join(name), bytes).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{name}"), snapshot.join(name)).unwrap();
    }
    files.assert_in(&world.fetch("hf://acme/sql").await.unwrap());
    world.config.hub.is_offline = true;
    files.assert_in(&world.fetch("hf://acme/sql").await.unwrap());
    let said = world.refused("hf://acme/other").await;
    assert!(said.contains("HF_HUB_OFFLINE"), "{said}");
}

#[tokio::test]
async fn revisions_and_folders_are_honoured() {
    let hub = Hub::start().await;
    let (tagged, commit) = (Files::new(2), COMMIT.replace('0', "f"));
    hub.publish("refs/pr/1", &commit, "checkpoints/10/", &tagged);
    let path = hub.world.fetch("hf://acme/sql@refs%2Fpr%2F1/checkpoints/10").await.unwrap();
    tagged.assert_in(&path);
    assert!(path.ends_with(format!("{commit}/checkpoints/10")));
    let note = hub.world.path("hub/models--acme--sql/refs/refs/pr/1");
    assert_eq!(fs::read_to_string(note).unwrap(), commit);
    let said = hub.world.refused("hf://acme/sql/checkpoints/10").await;
    assert!(said.contains("has no adapter_config.json"), "{said}");
}

#[tokio::test]
async fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let mut hub = Hub::start().await;
    hub.world.config.hub.token = Some(TOKEN.to_owned());
    hub.world.fetch("hf://acme/sql").await.unwrap();
    for asked in hub.shelf.asked() {
        let is_hub = !asked.path.starts_with("/cdn/");
        assert_eq!(asked.authorization.is_some(), is_hub, "{asked:?}");
    }
    assert!(!format!("{:?} {:?}", hub.world.config, hub.world.sources()).contains(TOKEN));
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_was_and_is_verified() {
    let hub = Hub::start().await;
    hub.shelf.wrong(Method::GET, &hub.cdn(), Wrong::Truncate(100));
    hub.files.assert_in(&hub.world.fetch("hf://acme/sql").await.unwrap());
    assert_eq!(hub.shelf.ranges(&hub.cdn()), [None, Some("bytes=100-".to_owned())]);
}

#[tokio::test]
async fn other_bytes_than_the_hub_announced_are_thrown_away() {
    for name in [CONFIG, TENSORS] {
        let hub = Hub::start().await;
        let (bytes, path) = match name {
            CONFIG => (&hub.files.config, format!("/acme/sql/resolve/{COMMIT}/{CONFIG}")),
            _ => (&hub.files.tensors, hub.cdn()),
        };
        let mut wrong = bytes.clone();
        wrong[5] ^= 1;
        let headers = vec![("etag", format!("\"{}\"", git_blob(bytes)))];
        hub.shelf.put(path, File { bytes: wrong, headers, redirect: None });
        let said = hub.world.refused("hf://acme/sql").await;
        assert!(said.contains(name) && said.contains("thrown away"), "{said}");
        let blobs = fs::read_dir(hub.world.path("hub/models--acme--sql/blobs")).unwrap();
        let names = blobs.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(names.into_iter().all(|name| name == git_blob(&hub.files.config)));
    }
}

#[tokio::test]
async fn too_large_is_known_before_anything_is_fetched() {
    let mut hub = Hub::start().await;
    hub.world.config.max_bytes = 100;
    let error = hub.world.fetch("hf://acme/sql").await.unwrap_err();
    let (place, num_bytes) = ("hf://acme/sql".to_owned(), hub.files.num_bytes());
    assert_eq!(error, SourceError::TooLarge { place, num_bytes, max_bytes: 100 });
    assert!(hub.shelf.ranges(TENSORS).is_empty() && hub.shelf.ranges(CONFIG).is_empty());
}

#[tokio::test]
async fn refusals_of_the_hub_become_sentences_with_what_to_do() {
    let mut hub = Hub::start().await;
    let describe = "/api/models/acme/sql/revision/main";
    let code = |status, code| Wrong::Status(status, vec![("x-error-code", code)]);
    for (wrong, is_missing, words) in [
        (code(401, "RepoNotFound"), true, "or is private: then set HF_TOKEN"),
        (Wrong::Status(401, vec![]), true, "set HF_TOKEN"),
        (code(401, "GatedRepo"), false, "is gated: accept its terms"),
        (code(403, "GatedRepo"), false, "is gated: accept its terms"),
        (code(404, "RevisionNotFound"), true, "has no such revision"),
        (Wrong::Status(404, vec![]), true, "does not exist"),
    ] {
        hub.shelf.wrong(Method::GET, describe, wrong);
        let error = hub.world.fetch("hf://acme/sql").await.unwrap_err();
        assert_eq!(matches!(error, SourceError::Missing { .. }), is_missing, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    hub.world.config.hub.token = Some(TOKEN.to_owned());
    hub.shelf.wrong(Method::GET, describe, Wrong::Status(401, vec![]));
    let said = hub.world.refused("hf://acme/sql").await;
    assert!(said.contains("the token that HF_TOKEN holds") && !said.contains(TOKEN), "{said}");
}

#[tokio::test]
async fn a_busy_hub_is_asked_again_and_nonsense_is_refused() {
    let hub = Hub::start().await;
    let describe = "/api/models/acme/sql/revision/main";
    hub.shelf.wrong(Method::GET, describe, Wrong::Status(429, vec![("retry-after", "0")]));
    hub.shelf.wrong(Method::GET, describe, Wrong::Status(502, vec![]));
    hub.world.fetch("hf://acme/sql").await.unwrap();
    for (body, words) in [("<html>", "something else than its API"), (r#"{"sha": ".."}"#, "commit")]
    {
        hub.shelf.put(describe, File { bytes: body.into(), ..File::default() });
        let said = hub.world.refused("hf://acme/sql").await;
        assert!(said.contains(words), "{said}");
    }
}

#[tokio::test]
async fn a_tag_that_would_leave_the_cache_is_refused() {
    let hub = Hub::start().await;
    let path = format!("/acme/sql/resolve/{COMMIT}/{CONFIG}");
    for tag in ["\"../../x\"", "\"..\"", "\"a/b\"", ""] {
        let headers = vec![("etag", tag.to_owned())];
        hub.shelf.put(&path, File { bytes: hub.files.config.clone(), headers, redirect: None });
        let said = hub.world.refused("hf://acme/sql").await;
        assert!(said.contains("which version"), "{said}");
    }
}

#[tokio::test]
async fn two_that_want_the_same_adapter_fetch_it_once() {
    let hub = Hub::start().await;
    let (a, b) = tokio::join!(hub.world.fetch("hf://acme/sql"), hub.world.fetch("hf://acme/sql"));
    assert_eq!(a.unwrap(), b.unwrap());
    assert_eq!(hub.shelf.ranges(&hub.cdn()).len(), 1);
}
