//! Storage with faults.
