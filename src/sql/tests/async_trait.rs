//! What the replacement of `#[async_trait]` in `patches/async-trait` has in common with the published macro.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

use std::future::Future;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

#[async_trait]
trait Store: Send + Sync {
    async fn get(&self, key: &str, otherwise: Option<&str>) -> Result<String, String>;

    async fn get_twice(&self, key: &str) -> Result<String, String> {
        let first = self.get(key, None).await?;
        Ok(format!("{first} {}", self.get(key, Some("gone")).await?))
    }

    async fn name(&self) -> &str;

    async fn rename(&mut self, (name, _): (&str, Dropped));

    async fn close(self: Box<Self>, _: Dropped, last: Dropped) -> usize;
}

struct Named(String);

#[async_trait]
impl Store for Named {
    async fn get(&self, key: &str, otherwise: Option<&str>) -> Result<String, String> {
        if key == self.0 {
            return Ok(key.into());
        }
        otherwise.map(Into::into).ok_or(format!("no {key}"))
    }

    async fn name(&self) -> &str {
        &self.0
    }

    async fn rename(&mut self, (name, _): (&str, Dropped)) {
        self.0 = name.to_owned();
    }

    async fn close(self: Box<Self>, _: Dropped, mut last: Dropped) -> usize {
        last.0 = "renamed";
        self.0.len()
    }
}

/// Records its name when it is dropped.
struct Dropped(&'static str, Arc<Mutex<Vec<&'static str>>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.1.lock().unwrap().push(self.0);
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

fn sendable<F: Future + Send>(future: F) -> F {
    future
}

#[test]
fn methods_of_trait_objects_borrow_return_early_and_have_defaults() {
    let mut store: Box<dyn Store> = Box::new(Named("one".to_owned()));
    let key = "one".to_owned();
    let found = block_on(sendable(store.get_twice(&key)));
    assert_eq!(found, Ok("one one".to_owned()));
    let found = block_on(sendable(store.get("two", None)));
    assert_eq!(found, Err("no two".to_owned()));
    let dropped = Dropped("argument", Arc::default());
    block_on(sendable(store.rename(("two", dropped))));
    assert_eq!(block_on(store.name()), "two");
}

#[test]
fn arguments_live_as_long_as_the_future_even_if_unused() {
    let names = Arc::new(Mutex::new(Vec::new()));
    let argument = |name| Dropped(name, Arc::clone(&names));
    let store: Box<dyn Store> = Box::new(Named("one".to_owned()));
    let closing = store.close(argument("unused"), argument("last"));
    assert!(names.lock().unwrap().is_empty());
    assert_eq!(block_on(sendable(closing)), 3);
    assert_eq!(*names.lock().unwrap(), ["renamed", "unused"]);
}
