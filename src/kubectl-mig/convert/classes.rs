//! The device classes that exist.

use std::collections::BTreeSet;

/// The classes that the chart creates by default.
const SHIPPED: &str = include_str!("../../../deploy/manifests/deviceclasses.yaml");

/// Names of device classes.
#[derive(Debug, Clone)]
pub(super) struct Classes(BTreeSet<String>);

impl Classes {
    /// Those that the chart creates by default, and `more`.
    pub(super) fn shipped_and(more: &[String]) -> Self {
        // The only entries of this name at this depth are those of `metadata`.
        let shipped = SHIPPED.lines().filter_map(|line| line.strip_prefix("  name: ")).map(str::to_owned);
        Self(shipped.chain(more.iter().cloned()).collect())
    }

    /// Whether a class exists.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// The classes with the same number of compute slices as `name`, for messages.
    pub(super) fn similar(&self, name: &str) -> Vec<&str> {
        let slices = name.split_once('.').map_or(name, |(slices, _)| slices);
        let prefix = format!("{slices}.");
        self.0.iter().map(String::as_str).filter(|it| it.starts_with(&prefix)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_classes_are_those_of_the_manifest() {
        let classes = Classes::shipped_and(&[]);
        let count = SHIPPED.matches("\nkind: DeviceClass\n").count();
        assert!(count > 20);
        assert_eq!(classes.0.len(), count);
        for name in ["mig.dra-driver.dev", "gpu.dra-driver.dev", "mig-1g.5gb", "mig-1g.24gb.me.all"] {
            assert!(classes.has(name), "{name}");
        }
        assert!(!classes.has("mig-1g.99gb"));
        assert!(Classes::shipped_and(&["mig-1g.99gb".to_owned()]).has("mig-1g.99gb"));
    }

    #[test]
    fn similar_classes_have_the_same_number_of_slices() {
        let classes = Classes::shipped_and(&[]);
        let similar = classes.similar("mig-7g.99gb");
        assert!(similar.contains(&"mig-7g.80gb"), "{similar:?}");
        assert!(similar.iter().all(|it| it.starts_with("mig-7g.")), "{similar:?}");
    }
}
