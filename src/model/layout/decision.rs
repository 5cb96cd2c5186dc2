//! Which layouts are in force. Pure.

use super::choice::{Layouts, Refusal};
use super::holds::HeldBack;

/// How GPUs are to be offered where no counters keep devices apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Rises with each decision; 0 before the first.
    pub revision: u64,
    /// The label's value, if there is one.
    pub label: Option<String>,
    /// What is in force.
    pub layouts: Layouts,
    /// Why that is not what the label asks for, if so.
    pub refusal: Option<Refusal>,
    /// GPUs of which only one profile is offered for a while, also where counters keep devices apart; `layouts` have it too.
    pub held_back: HeldBack,
}
