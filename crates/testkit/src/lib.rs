//! What Rewound's tests share: conformance suites for sources, sinks and storage, storage with
//! faults, and generators of hard documents. A dev-dependency only.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod captured;
pub mod documents;
pub mod faulty;
pub mod mongod;
pub mod moto;
pub mod ports;
pub mod pouchdb;
pub mod proxy;
pub mod ravendb;
pub mod sink;
pub mod source;
pub mod storage;
pub mod web;
