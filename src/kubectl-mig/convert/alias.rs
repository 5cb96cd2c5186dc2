//! Which anchors of a document lead to devices, without following an alias more than one step.

use std::collections::BTreeSet;

use super::resource::is_device;
use super::tree::{Content, Node};

/// The anchors, by number, whose nodes name devices of the device plugin, directly or through other anchors.
#[derive(Debug, Default)]
pub(super) struct Aliases(BTreeSet<usize>);

impl Aliases {
    /// Those of a document.
    pub(super) fn of(root: &Node<'_>) -> Self {
        let mut found = Self::default();
        found.collect(root);
        found
    }

    /// Anchors come before their aliases, so one walk in the order of the text is enough.
    fn collect(&mut self, node: &Node<'_>) -> bool {
        let mut mentions = self.is_one(node);
        for (key, value) in node.entries() {
            // Both: the walk must not stop at the first.
            mentions |= self.collect(key) | self.collect(value);
        }
        for item in node.items() {
            mentions |= self.collect(item);
        }
        if let Some(number) = node.anchor.filter(|_| mentions) {
            self.0.insert(number);
        }
        mentions
    }

    /// Whether a node names devices, in itself or behind an alias in it.
    pub(super) fn mention_devices(&self, node: &Node<'_>) -> bool {
        let inside =
            |(key, value): &(Node<'_>, Node<'_>)| self.mention_devices(key) || self.mention_devices(value);
        self.is_one(node)
            || node.entries().iter().any(inside)
            || node.items().iter().any(|it| self.mention_devices(it))
    }

    fn is_one(&self, node: &Node<'_>) -> bool {
        match &node.content {
            Content::Alias(number) => self.0.contains(number),
            _ => node.text().is_some_and(is_device),
        }
    }
}
