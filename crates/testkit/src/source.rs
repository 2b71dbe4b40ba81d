//! The conformance suite for sources.
