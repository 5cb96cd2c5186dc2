//! What a cluster holds, as far as this program needs it: read from the API server ([`read`](read::read)) or from files.
//!
//! A thousand nodes publish 250 MB of ResourceSlices. [`Slices`] keeps them as text, of which equal parts are kept once, and parses
//! those of one node at a time.

mod answer;
mod args;
mod connect;
mod demanded;
mod gates;
mod pieces;
mod read;
mod rules;
mod slices;
mod snapshot;

pub(crate) use self::answer::text as error_text;
pub use self::args::ClusterArgs;
pub use self::connect::{ClusterError, Connection};
pub use self::demanded::{Demanded, is_auto};
pub use self::gates::Gates;
pub(crate) use self::read::pages;
pub use self::read::{Kinds, read};
pub(crate) use self::rules::{Rule, cordon_toleration, rules};
pub use self::slices::{SliceError, Slices};
pub use self::snapshot::{Snapshot, Unread};
