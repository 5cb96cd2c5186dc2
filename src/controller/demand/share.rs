//! Bounds of one round, of which a namespace gets a part, so that it does not shut out others.

use std::collections::HashMap;

/// One namespace gets at most one in so many.
const NAMESPACE_PART: usize = 4;

/// How many of something one round has looked at.
#[derive(Debug)]
pub(super) struct Share<'w> {
    most: usize,
    used: usize,
    namespaces: HashMap<&'w str, usize>,
}

impl<'w> Share<'w> {
    /// At most so many in all.
    pub(super) fn new(most: usize) -> Self {
        Self { most, used: 0, namespaces: HashMap::new() }
    }

    /// Whether the namespace may use another one.
    pub(super) fn is_left(&self, namespace: &str) -> bool {
        let used = self.namespaces.get(namespace).copied().unwrap_or(0);
        self.used < self.most && used < self.most / NAMESPACE_PART
    }

    /// Uses one for the namespace, if there is one left for it.
    pub(super) fn take(&mut self, namespace: &'w str) -> bool {
        let is_left = self.is_left(namespace);
        if is_left {
            self.used += 1;
            *self.namespaces.entry(namespace).or_default() += 1;
        }
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_uses_a_quarter_at_most_and_all_of_them_the_whole() {
        let mut share = Share::new(10);
        let taken = ["a", "b", "c", "d", "e", "f"]
            .map(|namespace| (0..100).filter(|_| share.take(namespace)).count());
        assert_eq!(taken, [2, 2, 2, 2, 2, 0]);
        assert!(!share.is_left("a") && !share.is_left("g"));
    }
}
