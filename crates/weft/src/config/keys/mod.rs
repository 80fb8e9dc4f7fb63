//! The language: every key that `weft.yaml` may have, declared once.

pub(super) mod auth;
pub(super) mod channel;
pub(super) mod gateway;
pub(super) mod policy;
pub(super) mod root;
pub(super) mod saga;
pub(super) mod service;
pub(super) mod traffic;
