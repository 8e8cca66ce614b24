//! Over a thousand malformed requests: each is refused with a sentence, and the next good request
//! is served.

use crate::harness::{BASE, Server};
use serde_json::json;
use weft_testkit::bad_requests::bad_requests;

#[tokio::test]
async fn every_malformed_request_is_refused_by_name_and_harms_nobody() {
    let server = Server::start().await;
    let all = bad_requests(BASE);
    for (index, bad) in all.iter().enumerate() {
        let answer = server.post_bytes(bad.route, bad.body.clone()).await;
        let body: String = String::from_utf8_lossy(&bad.body).chars().take(300).collect();
        let seen = format!("{} {body}\n{} {}", bad.route, answer.status, answer.text);
        assert_eq!(answer.status, bad.status, "{seen}");
        assert!(answer.message().contains(&bad.message_part), "no {}: {seen}", bad.message_part);
        assert_eq!(answer.json()["error"]["type"], "BadRequestError", "{seen}");
        if index % 50 == 0 {
            server.complete(json!({ "prompt": "ab" })).await;
        }
    }
    server.complete(json!({ "prompt": "ab" })).await;
    server.idle().await;
}
