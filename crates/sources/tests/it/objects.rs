//! S3, as `object_store` speaks it, against a server that does not check signatures.

use crate::shelf::{File, Shelf, Wrong};
use crate::world::{CONFIG, Files, TENSORS, World, md5};
use axum::http::Method;
use weft_adapters::Asker;
use weft_sources::SourceError;

const URI: &str = "s3://bucket/team/sql";
const SECRET: &str = "hush-hush";

async fn served() -> (World, Shelf, Files) {
    let (mut world, shelf, files) = (World::new(), Shelf::start().await, Files::new(1));
    put(&shelf, &files);
    world.config.store_settings = [
        ("AWS_ENDPOINT_URL", shelf.url("").as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "someone"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "us-east-1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec();
    (world, shelf, files)
}

fn object(bytes: &[u8], etag: &str) -> File {
    let headers = vec![
        ("etag", format!("\"{etag}\"")),
        ("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT".to_owned()),
    ];
    File { bytes: bytes.to_vec(), headers, redirect: None }
}

fn put(shelf: &Shelf, files: &Files) {
    for (name, bytes) in files.each() {
        shelf.put(format!("/bucket/team/sql/{name}"), object(bytes, &md5(bytes)));
    }
    // Neighbours that are none of it.
    shelf.put("/bucket/team/sql2/adapter_config.json", object(b"x", "x"));
    shelf.put("/bucket/team/sql/checkpoint-1/adapter_config.json", object(b"x", "x"));
}

fn tensors() -> String {
    format!("/bucket/team/sql/{TENSORS}")
}

#[tokio::test]
async fn a_prefix_is_listed_fetched_signed_and_kept() {
    let (world, shelf, files) = served().await;
    let first = world.fetch(URI).await.unwrap();
    files.assert_in(&first);
    assert_eq!(std::fs::read_dir(&first).unwrap().count(), 2);
    let signed = |text: &Option<String>| {
        text.as_ref().is_some_and(|text| text.starts_with("AWS4-HMAC-SHA256 Credential=someone/"))
    };
    assert!(shelf.asked().iter().all(|asked| signed(&asked.authorization)), "{:?}", shelf.asked());
    assert_eq!(world.fetch(URI).await.unwrap(), first);
    assert_eq!(shelf.ranges(TENSORS).len(), 1);
    shelf.stop().await;
    assert_eq!(world.fetch(URI).await.unwrap(), first);
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_was() {
    let (world, shelf, files) = served().await;
    shelf.wrong(Method::GET, &tensors(), Wrong::Stall(100));
    files.assert_in(&world.fetch(URI).await.unwrap());
    assert_eq!(shelf.ranges(TENSORS), [None, Some("bytes=100-".to_owned())]);
}

#[tokio::test]
async fn an_entity_tag_that_is_an_md5_is_verified_and_others_are_not_taken_for_one() {
    let (world, shelf, files) = served().await;
    let mut wrong = files.tensors.clone();
    wrong[100] ^= 1;
    shelf.put(tensors(), object(&wrong, &md5(&files.tensors)));
    let said = world.refused(URI).await;
    assert!(said.contains("its MD5 is"), "{said}");
    // Uploaded in parts.
    shelf.put(tensors(), object(&files.tensors, &format!("{}-2", md5(b"x"))));
    files.assert_in(&world.fetch(URI).await.unwrap());
    // Encrypted with a key of its own, the tag looks like an MD5 and is none.
    let newer = Files::new(2);
    let mut file = object(&newer.tensors, &md5(b"y"));
    file.headers.push(("x-amz-server-side-encryption", "aws:kms".to_owned()));
    shelf.put(tensors(), file);
    newer.assert_in_tensors(&world.fetch(URI).await.unwrap());
    // A checksum of the object itself.
    let mut file = object(&newer.tensors, &md5(b"z"));
    file.headers.push(("x-amz-server-side-encryption", "aws:kms".to_owned()));
    file.headers
        .push(("x-amz-checksum-sha256", "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=".into()));
    shelf.put(tensors(), file);
    let said = world.refused(URI).await;
    assert!(said.contains("its SHA-256 is"), "{said}");
}

impl Files {
    fn assert_in_tensors(&self, directory: &std::path::Path) {
        assert_eq!(std::fs::read(directory.join(TENSORS)).unwrap(), self.tensors);
    }
}

#[tokio::test]
async fn an_object_that_is_replaced_meanwhile_is_never_mixed_with_its_successor() {
    let (world, shelf, _) = served().await;
    shelf.wrong(Method::GET, &tensors(), Wrong::Stall(100));
    let newer = Files::new(2);
    let (fetched, ()) = tokio::join!(world.fetch(URI), async {
        while shelf.ranges(TENSORS).is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        put(&shelf, &newer);
    });
    newer.assert_in(&fetched.unwrap());
}

#[tokio::test]
async fn refusals_become_sentences_without_secrets() {
    let (mut world, shelf, files) = served().await;
    let said = world.fetch("s3://bucket/none").await.unwrap_err();
    assert!(matches!(said, SourceError::Missing { .. }), "{said}");
    for status in [401, 403] {
        shelf.wrong(Method::GET, "/bucket", Wrong::Status(status, vec![]));
        let said = world.refused(URI).await;
        assert!(said.contains("AWS_ACCESS_KEY_ID") && !said.contains(SECRET), "{said}");
    }
    shelf.put("/bucket/team/sql/new_embeddings.bin", object(b"x", "x"));
    assert!(world.refused(URI).await.contains("carries new_embeddings.bin"));
    shelf.remove("/bucket/team/sql/new_embeddings.bin");
    world.config.max_bytes = files.num_bytes() - 1;
    assert!(world.refused(URI).await.contains("--adapter-download-max"));
    assert!(shelf.ranges(TENSORS).is_empty() && shelf.ranges(CONFIG).is_empty());
    let allowed = world.fetch_for(URI, Asker::Request).await.unwrap_err();
    assert!(matches!(allowed, SourceError::NotAllowed { .. }), "{allowed}");
}
