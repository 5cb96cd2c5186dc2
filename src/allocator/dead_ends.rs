//! States of a search from which nothing was found, so that none is searched twice: requests for equal devices reach one state by
//! every order in which they can take the same devices.

use std::collections::HashMap;

/// Most states that are remembered.
const MAX_STATES: usize = 1 << 16;

/// What the rest of a search depends on, apart from counters that refused candidates keep: the place, the chosen devices of each claim in any order, and
/// what the constraints want.
pub(crate) type State = Vec<usize>;

/// Searched states without a solution.
#[derive(Debug, Default)]
pub(crate) struct DeadEnds {
    /// How many candidates were tried from there.
    steps: HashMap<State, usize>,
    /// How many refused candidates had kept their counters in these states.
    leaked: usize,
}

impl DeadEnds {
    /// How many candidates a search from this state tries in vain, if that is known.
    pub(crate) fn steps(&mut self, state: &State, leaked: usize) -> Option<usize> {
        if self.leaked != leaked {
            // Counters only become fewer: no earlier state comes back.
            self.steps.clear();
            self.leaked = leaked;
        }
        self.steps.get(state).copied()
    }

    /// Remembers a state in which nothing was found, and no counters were kept on the way.
    pub(crate) fn add(&mut self, state: State, steps: usize) {
        if self.steps.len() < MAX_STATES {
            self.steps.insert(state, steps);
        }
    }
}
