//! Generators of hard documents.
