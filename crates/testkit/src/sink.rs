//! The conformance suite for sinks.
