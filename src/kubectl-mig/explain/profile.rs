//! What a request is after, in GPU terms, and what comes closest to it.

use std::collections::BTreeMap;

use dra_allocator::quantity::Quantity;
use k8s_openapi::api::resource::v1::{DeviceClass, DeviceSelector};

use crate::gpu::Gpu;

/// What the selectors of a class and a request name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Wish {
    /// MIG profiles.
    pub(super) profiles: Vec<String>,
    /// A whole GPU.
    pub(super) is_whole: bool,
    /// An amount that the text compares memory with.
    pub(super) memory: Option<Quantity>,
}

impl Wish {
    /// Reads the text of CEL expressions: names of profiles, `type == "gpu"`, and quantities next to `memory`. What it does not
    /// find is just not named in sentences; the decision is the allocator's.
    pub(super) fn of<'s>(selectors: impl IntoIterator<Item = &'s DeviceSelector>) -> Self {
        let mut wish = Self::default();
        for expression in selectors.into_iter().filter_map(|it| Some(it.cel.as_ref()?.expression.as_str())) {
            let reads_type = expression.contains(".type") || expression.contains(".?type");
            for literal in literals(expression) {
                if Size::of(literal).is_some() && !wish.profiles.iter().any(|it| it == literal) {
                    wish.profiles.push(literal.to_owned());
                }
                wish.is_whole |= (literal == "gpu" && reads_type) || literal == "full";
            }
            if let Some((_, rest)) = expression.split_once("quantity(")
                && expression.contains("memory")
            {
                wish.memory = literals(rest).next().and_then(|it| Quantity::parse(it).ok());
            }
        }
        wish
    }

    /// How a sentence calls the devices; `None` where the selectors name nothing.
    pub(super) fn noun(&self) -> Option<String> {
        match self.profiles.as_slice() {
            [] if self.is_whole => Some("whole GPU".to_owned()),
            [] => None,
            profiles => Some(profiles.join(" or ")),
        }
    }
}

/// The string literals of an expression.
fn literals(expression: &str) -> impl Iterator<Item = &str> {
    let mut rest = expression;
    std::iter::from_fn(move || {
        let start = rest.find(['"', '\''])?;
        let quote = rest[start..].chars().next()?;
        let after = &rest[start + 1..];
        let end = after.find(quote)?;
        rest = &after[end + 1..];
        Some(&after[..end])
    })
}

/// The numbers in the name of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size<'p> {
    /// Compute slices.
    pub(super) compute: u32,
    /// Gigabytes.
    pub(super) memory: u32,
    /// `+me` and the like.
    pub(super) suffix: &'p str,
}

impl<'p> Size<'p> {
    /// `None` for what is not the name of a profile.
    pub(super) fn of(profile: &'p str) -> Option<Self> {
        let (compute, rest) = profile.split_once("g.")?;
        let (memory, suffix) = rest.split_once("gb")?;
        // The name may come from the selector of a claim, and goes into advice.
        let is_plain = |it: u8| it.is_ascii_alphanumeric() || b"+-.".contains(&it);
        let is_suffix = suffix.is_empty() || suffix.starts_with(['+', '-', '.']);
        let is_suffix = is_suffix && suffix.len() <= 32 && suffix.bytes().all(is_plain);
        let digits = |it: &str| it.len() <= 4 && it.bytes().all(|b| b.is_ascii_digit());
        if !(is_suffix && digits(compute) && digits(memory)) {
            return None;
        }
        Some(Self { compute: compute.parse().ok()?, memory: memory.parse().ok()?, suffix })
    }
}

/// Profiles that nodes publish, and on how many GPUs and of which product.
#[derive(Debug, Clone, Default)]
pub(super) struct Published(BTreeMap<String, Kind>);

/// A profile, or `full` for whole GPUs.
#[derive(Debug, Clone, Default)]
pub(super) struct Kind {
    /// Products that have it.
    pub(super) products: Vec<String>,
    /// Drivers that publish it.
    pub(super) drivers: Vec<String>,
    /// Memory in bytes.
    pub(super) memory: u64,
}

impl Published {
    /// Adds the GPUs of a node.
    pub(super) fn add(&mut self, gpus: &[Gpu]) {
        for gpu in gpus {
            for device in &gpu.devices {
                let name = device.profile.as_deref().unwrap_or("full");
                if !self.0.contains_key(name) {
                    self.0.insert(name.to_owned(), Kind { memory: device.memory, ..Kind::default() });
                }
                let Some(kind) = self.0.get_mut(name) else { continue };
                for (list, value) in [(&mut kind.products, &gpu.product), (&mut kind.drivers, &gpu.driver)] {
                    if !list.contains(value) {
                        list.push(value.clone());
                    }
                }
            }
        }
    }

    /// Adds what others have found.
    pub(super) fn merge(&mut self, other: Self) {
        for (name, kind) in other.0 {
            let known = self.0.entry(name).or_insert_with(|| Kind { memory: kind.memory, ..Kind::default() });
            for (list, values) in [(&mut known.products, kind.products), (&mut known.drivers, kind.drivers)] {
                for value in values {
                    if !list.contains(&value) {
                        list.push(value);
                    }
                }
            }
        }
    }

    /// What is published of a profile.
    pub(super) fn get(&self, profile: &str) -> Option<&Kind> {
        self.0.get(profile)
    }

    /// Names of MIG profiles.
    pub(super) fn profiles(&self) -> impl Iterator<Item = (&str, Size<'_>)> {
        self.0.keys().filter_map(|name| Some((name.as_str(), Size::of(name)?)))
    }

    /// The profiles that come closest by memory and by compute; the same suffix comes first, then what is not smaller.
    pub(super) fn nearest(&self, profile: &str) -> Option<(&str, &str)> {
        let wanted = Size::of(profile)?;
        let far = |has: u32, wants: u32| (has.abs_diff(wants), has < wants);
        let other = |it: &Size<'_>| it.suffix != wanted.suffix;
        let memory =
            |it: &Size<'_>| (far(it.memory, wanted.memory), other(it), far(it.compute, wanted.compute));
        let compute =
            |it: &Size<'_>| (far(it.compute, wanted.compute), other(it), far(it.memory, wanted.memory));
        let by_memory = self.profiles().min_by_key(|(_, it)| memory(it))?.0;
        let by_compute = self.profiles().min_by_key(|(_, it)| compute(it))?.0;
        Some((by_memory, by_compute))
    }

    /// Products of all of it.
    pub(super) fn products(&self) -> Vec<String> {
        let mut all: Vec<String> = self.0.values().flat_map(|it| it.products.iter().cloned()).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Gigabytes of a memory slice, from the profile with one compute slice and the least memory, or an eighth of a whole GPU.
    pub(super) fn slice_gigabytes(&self) -> Option<u32> {
        let small = self.profiles().filter(|(_, it)| it.compute == 1).map(|(_, it)| it.memory).min();
        let whole = || {
            let bytes = self.0.get("full")?.memory;
            u32::try_from(bytes.div_ceil(8 << 30)).ok().filter(|it| *it > 0)
        };
        small.or_else(whole)
    }

    /// The largest memory of any device, in bytes, with the profile.
    pub(super) fn largest(&self) -> Option<(&str, u64)> {
        self.0.iter().map(|(name, kind)| (name.as_str(), kind.memory)).max_by_key(|(_, memory)| *memory)
    }
}

/// The class whose selectors name this profile and no other.
pub(super) fn class_of<'c>(classes: &'c [DeviceClass], profile: &str) -> Option<&'c str> {
    let names = |class: &&DeviceClass| Wish::of(class.spec.selectors.iter().flatten()).profiles == [profile];
    classes.iter().find(names)?.metadata.name.as_deref()
}

/// A profile in the form that labels and class names have: `+` is not allowed in them.
pub(super) fn label(profile: &str) -> String {
    profile.replace('+', ".").replace("gb-me", "gb.nome")
}

/// Bytes for people.
pub(super) fn gibibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 30;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_recognised_by_its_name() {
        let it = Size::of("1g.10gb+me").unwrap();
        assert_eq!((it.compute, it.memory, it.suffix), (1, 10, "+me"));
        for other in ["gpu", "1g.gb", "g.10gb", "1g.10gbx", "1c.3g.20gb", "99999g.1gb"] {
            assert_eq!(Size::of(other), None, "{other}");
        }
    }

    #[test]
    fn expressions_name_profiles_whole_gpus_and_memory() {
        let selector = |text: &str| -> DeviceSelector {
            serde_json::from_value(serde_json::json!({"cel": {"expression": text}})).unwrap()
        };
        let of = |text: &str| Wish::of([&selector(text)]);
        assert_eq!(
            of(r#"device.attributes["x"].profile in ['1g.5gb', "2g.10gb"]"#).profiles,
            ["1g.5gb", "2g.10gb"]
        );
        assert!(of(r#"device.attributes["x"].type == "gpu""#).is_whole);
        assert!(of(r#"device.attributes["x"].?type.orValue("") == "gpu""#).is_whole);
        assert!(!of(r#"device.driver == "gpu""#).is_whole);
        let memory = of(r#"device.capacity["x"].memory.compareTo(quantity("20Gi")) >= 0"#).memory;
        assert_eq!(memory, Quantity::parse("20Gi").ok());
        assert_eq!(of("'unfinished"), Wish::default());
    }

    #[test]
    fn the_nearest_profiles_are_those_by_memory_and_by_compute() {
        let mut all = Published::default();
        for name in ["1g.10gb", "1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb", "full"] {
            all.0.insert(name.to_owned(), Kind::default());
        }
        assert_eq!(all.nearest("1g.5gb"), Some(("1g.10gb", "1g.10gb")));
        assert_eq!(all.nearest("4g.20gb"), Some(("2g.20gb", "3g.40gb")));
        assert_eq!(all.nearest("1g.5gb+me"), Some(("1g.10gb+me", "1g.10gb+me")));
        assert_eq!(Published::default().nearest("1g.5gb"), None);
    }
}
