//! The conformance suite for storage.
