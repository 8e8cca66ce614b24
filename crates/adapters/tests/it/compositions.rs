//! Compositions in the registry: found by formula, cached, evicted, composed anew when a part changes,
//! named and unnamed.

use crate::world::World;
use std::sync::Arc;
use std::time::Duration;
use weft_adapters::{AdapterError, AdapterTier, Composition, CompositionPart};

async fn error(world: &World, model: &str) -> String {
    world.registry.resolve(model).await.unwrap_err().to_string()
}

fn two_adapters() -> World {
    let world = World::new();
    world.write("adapters/a", 4, 1);
    world.write("adapters/b", 8, 2);
    world
}

#[tokio::test]
async fn a_formula_is_one_adapter_with_an_identity_of_its_own_and_is_not_listed() {
    let world = two_adapters();
    let both = world.registry.resolve("a+0.5*b").await.unwrap();
    assert_eq!((both.name(), both.weights().max_rank()), ("a+0.5*b", 12));
    let same = world.registry.resolve("0.50*b+1*a").await.unwrap();
    assert_eq!(same.content_hash(), both.content_hash());
    assert!(Arc::ptr_eq(same.weights(), both.weights()), "composed once");
    let other = world.registry.resolve("a+b").await.unwrap();
    assert_ne!(other.content_hash(), both.content_hash());
    let a = world.registry.resolve("a").await.unwrap();
    assert_eq!(world.registry.resolve("1*a").await.unwrap().content_hash(), a.content_hash());
    let names: Vec<_> = world.listed().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["a", "b"]);
    for hidden in ["a+0.5*b", "=1*a+0.5*b", "=1*a+1*b"] {
        assert!(world.registry.get(hidden).is_none());
        let refused = world.registry.unload(hidden).await;
        assert!(matches!(refused, Err(AdapterError::NotFound { .. })));
        assert!(world.registry.pin(hidden).await.is_err());
        assert!(world.registry.unpin(hidden).is_err());
    }
    assert!(world.registry.resolve("=1*a+1*b").await.is_err());
    assert_eq!(world.registry.stats().num_known, 2);
    drop((both, same, other, a));
    world.audit().await;
}

#[tokio::test]
async fn parts_with_any_names_are_composed_when_they_are_given_one_by_one() {
    let world = World::new();
    world.write("adapters/c+d", 4, 1);
    world.write("adapters/e", 8, 2);
    let part = |name: &str, scale| CompositionPart { name: name.to_owned(), scale };
    let composition = Composition::new(vec![part("e", 2.0), part("c+d", 1.0)]).unwrap();
    let lease = world.registry.resolve_composition(composition, &Arc::from("")).await.unwrap();
    assert_eq!((lease.name(), lease.weights().max_rank()), ("c+d+2*e", 12));
    // A name of its own comes before any formula.
    assert_eq!(world.rank("c+d").await, Some(4));
    drop(lease);
    world.audit().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_composition_is_said() {
    let world = two_adapters();
    world.write("adapters/b+c", 4, 3);
    world.write("adapters/c", 60, 4);
    let cases = [
        ("a+x", "the composition \"a+x\" names the adapter \"x\", which does not exist"),
        ("a+b+c", "is ambiguous, because there is an adapter \"b+c\""),
        ("2*b+c", "is ambiguous, because there is an adapter \"b+c\""),
        ("a+a", "names \"a\" twice"),
        ("x*a+b", "has the scale \"x\""),
        ("a+c", "has rank 64 at"),
        ("a++b", "the model `a++b` does not exist"),
        ("a+", "the model `a+` does not exist"),
    ];
    for (model, words) in cases {
        if model == "a+c" {
            assert_eq!(world.rank(model).await, Some(64));
        } else {
            let message = error(&world, model).await;
            assert!(message.contains(words), "{model}: {message}");
        }
    }
    let message = error(&world, "b+2*c").await;
    assert!(
        message.contains("has rank 68 at q_proj of layer 0, the sum of its parts"),
        "{message}"
    );
    assert!(message.contains("--max-lora-rank 64"), "{message}");
    world.audit().await;
}

#[tokio::test]
async fn a_composition_follows_its_parts_and_a_lease_keeps_the_old_one() {
    let world = two_adapters();
    let before = world.registry.resolve("a+b").await.unwrap();
    let other = world.write("other", 16, 9);
    world.registry.load("b", &other, true).await.unwrap();
    let after = world.registry.resolve("a+b").await.unwrap();
    assert_ne!(after.content_hash(), before.content_hash());
    assert_eq!((before.weights().max_rank(), after.weights().max_rank()), (12, 20));
    world.registry.unload("b").await.unwrap();
    let message = error(&world, "a+b").await;
    assert!(message.contains("names the adapter \"b\", which does not exist"), "{message}");
    assert_eq!(after.weights().max_rank(), 20);
    drop((before, after));
    world.audit().await;
}

#[tokio::test]
async fn a_named_composition_is_listed_pinned_followed_and_unloaded_like_any_adapter() {
    let world = two_adapters();
    let load = async |name: &str, formula: &str, in_place| {
        world.registry.load(name, format!("compose:{formula}").as_ref(), in_place).await
    };
    let info = load("mix", "b+0.5*a", false).await.unwrap();
    assert_eq!((info.name.as_str(), info.rank), ("mix", Some(12)));
    assert_eq!(info.path, std::path::Path::new("compose:0.5*a+b"));
    let mix = world.registry.resolve("mix").await.unwrap();
    assert_eq!(mix.name(), "mix");
    let unnamed = world.registry.resolve("0.5*a+b").await.unwrap();
    assert!(Arc::ptr_eq(mix.weights(), unnamed.weights()), "equal content, one copy");
    assert!(world.registry.pin("mix").await.unwrap().pinned);

    let other = world.write("other", 16, 9);
    world.registry.load("b", &other, true).await.unwrap();
    assert_eq!(world.rank("mix").await, Some(20));
    assert!(world.info("mix").pinned, "a replacement is pinned, too");

    assert!(matches!(load("mix", "a+b", false).await, Err(AdapterError::AlreadyLoaded { .. })));
    load("mix", "a+b", true).await.unwrap();
    let message = error(&world, "a+mix").await;
    assert!(message.contains("names the composition \"mix\"; name its parts"), "{message}");
    for formula in ["", "a", "a+x", "mix+a", "a+a"] {
        assert!(load("bad", formula, false).await.is_err(), "{formula}");
    }
    world.registry.unload("mix").await.unwrap();
    assert_eq!(world.rank("mix").await, None);
    drop((mix, unnamed));
    world.audit().await;
}

#[tokio::test]
async fn host_memory_is_shared_with_compositions_which_leave_and_come_again() {
    let sizes = two_adapters();
    let bytes = async |name| sizes.registry.resolve(name).await.unwrap().weights().num_bytes;
    let (a, b, both) = (bytes("a").await, bytes("b").await, bytes("a+b").await);

    let with_budget = |budget| {
        let world = World::with(|config| {
            config.host_memory_bytes = Some(budget);
            config.room_timeout = Duration::from_millis(50);
        });
        world.write("adapters/a", 4, 1);
        world.write("adapters/b", 8, 2);
        world
    };
    let world = with_budget((a + b + both) * 5 / 4);
    let first = world.registry.resolve("a+b").await.unwrap().content_hash();
    world.write("adapters/large", 24, 3);
    assert_eq!(world.rank("large").await, Some(24));
    assert!(world.registry.stats().evictions > 0);
    assert_eq!(world.registry.resolve("a+b").await.unwrap().content_hash(), first);
    assert_eq!(world.tier("a"), AdapterTier::Host);
    world.registry.check_integrity().unwrap();

    let small = with_budget((a + b) * 3 / 2);
    let error = small.registry.resolve("a+b").await.unwrap_err();
    assert!(matches!(error, AdapterError::HostMemoryTooSmall { .. }), "{error}");
    small.audit().await;
}

#[tokio::test]
async fn compositions_that_nobody_named_are_forgotten_when_there_are_too_many() {
    let world = two_adapters();
    let first = world.registry.resolve("a+1.5*b").await.unwrap();
    for scale in 0..300 {
        let model = format!("a+{}*b", 2.0 + f64::from(scale) / 8.0);
        world.registry.resolve(&model).await.unwrap();
    }
    world.registry.check_integrity().unwrap();
    let bytes = world.registry.stats().host_bytes;
    assert!(bytes < 270 * first.weights().num_bytes, "{bytes}");
    let again = world.registry.resolve("a+1.5*b").await.unwrap();
    assert!(Arc::ptr_eq(again.weights(), first.weights()), "held, so it stayed in memory");
    drop((first, again));
    world.audit().await;
}

#[tokio::test]
async fn many_who_ask_at_once_get_one_composition() {
    let world = two_adapters();
    let asked: Vec<_> = (0..20).map(|i| world.resolve(["a+b", "b+a"][i % 2])).collect();
    let mut leases = Vec::new();
    for lease in asked {
        leases.push(lease.await.unwrap().unwrap());
    }
    assert!(leases.iter().all(|lease| Arc::ptr_eq(lease.weights(), leases[0].weights())));
    assert_eq!(world.registry.stats().loads_ok, 3);
    drop(leases);
    world.audit().await;
}
