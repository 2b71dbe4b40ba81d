//! What users with few privileges can read, and what they are told where they cannot.
#![allow(clippy::unwrap_used)]

mod common;

use bson::{Bson, doc};
use model::{ErrorKind, Plan, Selection, Source};
use mongo::{MongoSource, Server};
use std::sync::Arc;
use testkit::mongod::{Mongod, Options};
use testkit::source::read_everything;

fn url(mongod: &Mongod, user: &str, password: &str, database: &str) -> String {
    format!("mongodb://{user}:{password}@{}/{database}?directConnection=true&authSource=admin", mongod.host())
}

fn source(mongod: &Mongod, user: &str, database: &str) -> MongoSource {
    MongoSource::new(Arc::new(Server::new(url(mongod, user, "pw", database), None)))
}

/// A replica set with users, one for each role that matters.
async fn with_users() -> Arc<Mongod> {
    let mongod = Arc::new(Mongod::start(Options { auth: true, ..Options::replica_set() }));
    let create = doc! { "createUser": "root", "pwd": "pw", "roles": ["root"] };
    let answer = mongod.command(create);
    assert_eq!(answer.get_f64("ok").ok(), Some(1.0), "{answer}");
    let root = Server::new(url(&mongod, "root", "pw", ""), None);
    for (user, roles) in [
        ("backup", vec![Bson::from("backup")]),
        ("reader", vec![Bson::from("readAnyDatabase")]),
        ("one", vec![doc! { "role": "read", "db": "shop" }.into()]),
        ("nobody", vec![]),
    ] {
        root.admin(doc! { "createUser": user, "pwd": "pw", "roles": roles }).await.unwrap();
    }
    for database in ["shop", "other"] {
        let documents: Vec<_> = (0..10).map(|i| doc! { "_id": i }).collect();
        root.run(database, doc! { "insert": "things", "documents": documents }).await.unwrap();
    }
    mongod
}

#[tokio::test]
async fn roles_and_what_they_give() {
    let mongod = with_users().await;
    let all = Selection::default();

    // The built-in role `backup` reads everything, with a position to go on from, and users.
    let backup = source(&mongod, "backup", "");
    let everything = read_everything(&backup, &all, Arc::default()).await.unwrap();
    assert_eq!(everything.collections.keys().collect::<Vec<_>>(), ["other.things", "shop.things"]);
    let Plan::Scan { start, at, .. } = backup.plan(&all, None).await.unwrap() else { panic!() };
    assert!(start.is_some() && at.is_some());
    let users = Selection { users: true, only: vec!["admin.*".into()], ..Selection::default() };
    let everything = read_everything(&backup, &users, Arc::default()).await.unwrap();
    assert_eq!(everything.of("admin.system.users").len(), 5);

    // Without the oplog there is no position: the next backup compares.
    let reader = source(&mongod, "reader", "");
    let everything = read_everything(&reader, &all, Arc::default()).await.unwrap();
    assert_eq!(everything.of("shop.things").len(), 10);
    let Plan::Scan { start, at, .. } = reader.plan(&all, None).await.unwrap() else { panic!() };
    assert!(start.is_none() && at.is_some());

    // One database is enough for one database, and all that such a user sees of a server.
    let one = source(&mongod, "one", "shop");
    let everything = read_everything(&one, &all, Arc::default()).await.unwrap();
    assert_eq!(everything.collections.keys().collect::<Vec<_>>(), ["shop.things"]);
    let everything = read_everything(&source(&mongod, "one", ""), &all, Arc::default()).await.unwrap();
    assert_eq!(everything.collections.keys().collect::<Vec<_>>(), ["shop.things"]);

    for (user, database) in [("one", "other"), ("nobody", "shop")] {
        let error = source(&mongod, user, database).plan(&all, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Credentials, "{error}");
        assert!(error.hint_text().is_some());
    }
}

#[tokio::test]
async fn passwords() {
    let mongod = with_users().await;
    let with = |text: String, password: Option<&str>| {
        let source = MongoSource::new(Arc::new(Server::new(text, password.map(str::to_owned))));
        async move { source.describe().await }
    };
    let bare = format!("mongodb://backup@{}/?directConnection=true", mongod.host());
    assert!(with(bare.clone(), Some("pw")).await.is_ok());
    for (text, password) in [(bare.clone(), Some("wrong")), (url(&mongod, "backup", "wrong", ""), None)] {
        let error = with(text, password).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Credentials, "{error}");
        assert!(!format!("{error:?}").contains("wrong"), "{error:?}");
    }
    let none = format!("mongodb://{}/?directConnection=true", mongod.host());
    let error = with(none, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Credentials, "{error}");
}
