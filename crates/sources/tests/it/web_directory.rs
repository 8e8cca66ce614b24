//! Directories of web servers.

use crate::shelf::{File, Shelf, Wrong};
use crate::world::{CONFIG, Files, TENSORS, World, sha256};
use axum::http::Method;
use std::time::Duration;
use weft_adapters::Asker;
use weft_sources::SourceError;

async fn served() -> (World, Shelf, Files, String) {
    let (world, shelf, files) = (World::new(), Shelf::start().await, Files::new(1));
    files.put(&shelf, "/a/sql");
    let uri = shelf.url("/a/sql");
    (world, shelf, files, uri)
}

fn tensors() -> String {
    format!("/a/sql/{TENSORS}")
}

#[tokio::test]
async fn an_adapter_is_fetched_once_and_a_second_start_needs_no_server() {
    let (world, shelf, files, uri) = served().await;
    let first = world.fetch(&uri).await.unwrap();
    files.assert_in(&first);
    assert_eq!(world.told(), [(format!("{uri}/"), files.num_bytes())]);
    assert_eq!(world.fetch(&uri).await.unwrap(), first);
    assert_eq!(shelf.ranges(TENSORS), [None], "fetched twice");
    shelf.stop().await;
    assert_eq!(world.fetch(&uri).await.unwrap(), first);
    assert_eq!(world.told().len(), 1);
}

#[tokio::test]
async fn a_new_version_is_another_directory_and_the_old_one_stays() {
    let (world, shelf, files, uri) = served().await;
    let old = world.fetch(&uri).await.unwrap();
    let newer = Files::new(2);
    newer.put(&shelf, "/a/sql");
    let new = world.fetch(&uri).await.unwrap();
    newer.assert_in(&new);
    files.assert_in(&old);
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    let (world, shelf, files, uri) = served().await;
    for wrong in [Wrong::Truncate(100), Wrong::Stall(50), Wrong::Status(503, vec![])] {
        shelf.wrong(Method::GET, &tensors(), wrong);
    }
    files.assert_in(&world.fetch(&uri).await.unwrap());
    let rest = |from: u64| Some(format!("bytes={from}-"));
    assert_eq!(shelf.ranges(TENSORS), [None, rest(100), rest(150), rest(150)]);
}

#[tokio::test]
async fn what_came_before_a_failure_is_used_by_the_next_start() {
    let (world, shelf, files, uri) = served().await;
    shelf.wrong(Method::GET, &tensors(), Wrong::Truncate(100));
    for _ in 0..3 {
        shelf.wrong(Method::GET, &tensors(), Wrong::Status(500, vec![]));
    }
    let said = world.refused(&uri).await;
    assert!(said.contains("does not answer: status 500"), "{said}");
    files.assert_in(&world.fetch(&uri).await.unwrap());
    assert_eq!(shelf.ranges(TENSORS).last().unwrap().as_deref(), Some("bytes=100-"));
}

#[tokio::test]
async fn a_server_without_ranges_sends_all_again() {
    let (world, shelf, files, uri) = served().await;
    shelf.wrong(Method::GET, &tensors(), Wrong::Truncate(100));
    shelf.wrong(Method::GET, &tensors(), Wrong::IgnoreRange);
    files.assert_in(&world.fetch(&uri).await.unwrap());
}

#[tokio::test]
async fn a_fetch_that_is_cancelled_stops_and_the_next_one_goes_on() {
    let (mut world, shelf, files, uri) = served().await;
    world.config.patience.silence = Duration::from_secs(60);
    shelf.wrong(Method::GET, &tensors(), Wrong::Stall(100));
    let slow = tokio::time::timeout(Duration::from_millis(500), world.fetch(&uri)).await;
    assert!(slow.is_err(), "{slow:?}");
    files.assert_in(&world.fetch(&uri).await.unwrap());
    assert_eq!(shelf.ranges(TENSORS), [None, Some("bytes=100-".to_owned())]);
}

#[tokio::test]
async fn a_file_that_is_replaced_meanwhile_is_fetched_from_its_beginning() {
    let (world, shelf, files, uri) = served().await;
    shelf.wrong(Method::GET, &tensors(), Wrong::Truncate(100));
    shelf.wrong(Method::GET, &tensors(), Wrong::Stall(10));
    let newer = Files::new(2);
    let (fetched, ()) = tokio::join!(world.fetch(&uri), async {
        while shelf.ranges(TENSORS).len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        newer.put(&shelf, "/a/sql");
    });
    newer.assert_in(&fetched.unwrap());
    assert!(files.tensors != newer.tensors);
}

#[tokio::test]
async fn bytes_with_another_checksum_never_reach_the_cache() {
    let (world, shelf, files, uri) = served().await;
    let mut wrong = files.tensors.clone();
    wrong[100] ^= 1;
    let headers = vec![("etag", "\"x\"".to_owned()), ("x-checksum-sha256", sha256(&files.tensors))];
    let put = |bytes: &[u8]| {
        let file = File { bytes: bytes.to_vec(), headers: headers.clone(), redirect: None };
        shelf.put(tensors(), file);
    };
    put(&wrong);
    let said = world.refused(&uri).await;
    assert!(said.contains("its SHA-256 is") && said.contains("thrown away"), "{said}");
    put(&files.tensors);
    files.assert_in(&world.fetch(&uri).await.unwrap());
}

#[tokio::test]
async fn too_large_is_known_before_anything_is_fetched() {
    let (mut world, shelf, files, uri) = served().await;
    world.config.max_bytes = files.num_bytes() - 1;
    let said = world.refused(&uri).await;
    assert!(said.contains("--adapter-download-max"), "{said}");
    assert!(shelf.asked().iter().all(|one| one.method == Method::HEAD));
    world.config.max_bytes += 1;
    world.fetch(&uri).await.unwrap();
}

#[tokio::test]
async fn a_server_that_sends_more_than_it_said_is_not_believed() {
    let (world, shelf, files, uri) = served().await;
    // Two answers of one file: HEAD of the short one, GET of the long one, with one tag.
    let mut long = files.tensors.clone();
    long.extend_from_slice(&[0; 1000]);
    let tag = vec![("etag", "\"same\"".to_owned())];
    shelf.put(tensors(), File { bytes: long, headers: tag.clone(), redirect: None });
    shelf.wrong(
        Method::HEAD,
        &tensors(),
        Wrong::Status(200, vec![("content-length", "500"), ("etag", "\"same\"")]),
    );
    let said = world.refused(&uri).await;
    assert!(said.contains("than the 500 bytes it has"), "{said}");
}

#[tokio::test]
async fn what_is_missing_or_not_served_is_said_in_a_sentence() {
    let (world, shelf, _, uri) = served().await;
    let said = world.fetch(&shelf.url("/a/none")).await.unwrap_err();
    assert!(matches!(said, SourceError::Missing { .. }), "{said}");
    shelf.put("/a/sql/new_embeddings.safetensors", File::default());
    let said = world.refused(&uri).await;
    assert!(said.contains("carries new_embeddings.safetensors"), "{said}");
    shelf.remove("/a/sql/new_embeddings.safetensors");
    shelf.remove(&tensors());
    shelf.put("/a/sql/adapter_model.bin", File::default());
    let said = world.refused(&uri).await;
    assert!(said.contains("pickle"), "{said}");
    shelf.wrong(Method::HEAD, &format!("/a/sql/{CONFIG}"), Wrong::Status(401, vec![]));
    let said = world.refused(&uri).await;
    assert!(said.contains("without a login"), "{said}");
}

#[tokio::test]
async fn redirects_are_followed_but_to_no_other_scheme() {
    let (world, shelf, files, uri) = served().await;
    for wrong in ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://198.51.100.1/x"] {
        shelf.wrong(Method::HEAD, &tensors(), Wrong::Redirect(wrong.to_owned()));
        let said = world.refused(&uri).await;
        assert!(said.contains("is not followed"), "{said}");
    }
    let real = format!("/elsewhere/{TENSORS}");
    files.put(&shelf, "/elsewhere");
    shelf.put(tensors(), File { redirect: Some(real), ..File::default() });
    files.assert_in(&world.fetch(&uri).await.unwrap());
    shelf.put(tensors(), File { redirect: Some(uri.clone()), ..File::default() });
    shelf.put("/a/sql/", File { redirect: Some(uri.clone()), ..File::default() });
    shelf.put("/a/sql", File { redirect: Some(uri.clone()), ..File::default() });
    let said = world.refused(&uri).await;
    assert!(said.contains("redirects more than"), "{said}");
}

#[tokio::test]
async fn a_request_may_name_only_what_is_allowed_and_no_private_host_by_a_general_pattern() {
    let (mut world, shelf, files, uri) = served().await;
    let said = world.fetch_for(&uri, Asker::Request).await.unwrap_err();
    assert!(matches!(said, SourceError::NotAllowed { .. }), "{said}");
    assert!(said.to_string().contains("--adapter-source-allow"), "{said}");
    world.allow(&["https://*", "hf://acme/*"]);
    assert!(world.fetch_for(&uri, Asker::Request).await.is_err());
    // The general pattern covers no private host by its address or by a name that leads there.
    for host in ["127.0.0.1", "[::1]", "localhost", "169.254.169.254", "[::ffff:10.0.0.1]"] {
        let private = format!("https://{host}:{}/a/sql", shelf.port);
        let said = world.fetch_for(&private, Asker::Request).await.unwrap_err();
        assert!(said.to_string().contains("private network"), "{host}: {said}");
    }
    assert!(shelf.asked().is_empty());
    world.allow(&[&shelf.url("/a/*")]);
    files.assert_in(&world.fetch_for(&uri, Asker::Request).await.unwrap());
    // A redirect to a host that no pattern names is judged like any other.
    let elsewhere = format!("http://localhost:{}/a/sql/{TENSORS}", shelf.port);
    shelf.wrong(Method::HEAD, &tensors(), Wrong::Redirect(elsewhere));
    let said = world.fetch_for(&uri, Asker::Request).await.unwrap_err();
    assert!(said.to_string().contains("private network"), "{said}");
}
