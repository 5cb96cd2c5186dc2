//! The `device` variable.
//!
//! `attributes` and `capacity` are maps by domain that answer an empty map for a domain that the device does not have; that
//! is why they are a separate type and not a plain map.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cel::common::traits::{Container, Indexer, Sizer};
use cel::common::types::{CelInt, CelMap, CelMapKey, CelString, Type};
use cel::common::value::{CowVal, Val};
use cel::{ExecutionError, Value};
use k8s_openapi::api::resource::v1::Device;

use super::quantity::QuantityValue;
use super::version::VersionValue;
use crate::quantity::Quantity;

static DEVICE_TYPE: LazyLock<Type> = LazyLock::new(|| Type::new_opaque_type("kubernetes.DRADevice"));
static DOMAINS_TYPE: LazyLock<Type> = LazyLock::new(|| Type::new_opaque_type("kubernetes.DRADomains"));

/// Names to values, by domain. Expressions borrow them.
type ByDomain = HashMap<String, CelMap<'static>>;

/// A map by domain.
#[derive(Debug, Clone)]
struct Domains(Arc<ByDomain>);

/// A device as expressions see it.
#[derive(Debug, Clone)]
pub(super) struct DeviceValue {
    driver: CelString<'static>,
    attributes: Domains,
    capacity: Domains,
}

/// Names to values, by domain, before they are maps of CEL.
type Entries = HashMap<String, HashMap<CelMapKey<'static>, Box<dyn Val>>>;

fn put(entries: &mut Entries, driver: &str, name: &str, value: Value) {
    let (domain, identifier) = name.split_once('/').unwrap_or((driver, name));
    // Every value of a device is one of CEL, too.
    let Ok(value) = value.try_into() else { return };
    let key = CelMapKey::from(identifier.to_owned());
    match entries.get_mut(domain) {
        Some(known) => drop(known.insert(key, value)),
        None => drop(entries.insert(domain.to_owned(), HashMap::from([(key, value)]))),
    }
}

impl DeviceValue {
    /// The device of a driver. What cannot be read (the API server lets nothing such through) is left out.
    pub(super) fn new(driver: &str, device: &Device) -> Self {
        let mut attributes = Entries::new();
        for (name, attribute) in device.attributes.iter().flatten() {
            let value = if let Some(text) = &attribute.string {
                Some(Value::String(Arc::new(text.clone())))
            } else if let Some(version) = &attribute.version {
                semver::Version::parse(version).ok().map(|v| VersionValue(v).into())
            } else {
                attribute.bool.map(Value::Bool).or(attribute.int.map(Value::Int))
            };
            if let Some(value) = value {
                put(&mut attributes, driver, name, value);
            }
        }
        let mut capacity = Entries::new();
        for (name, amount) in device.capacity.iter().flatten() {
            if let Ok(quantity) = Quantity::parse(&amount.value.0) {
                put(&mut capacity, driver, name, QuantityValue(quantity).into());
            }
        }
        Self {
            driver: driver.to_owned().into(),
            attributes: Domains::of(attributes),
            capacity: Domains::of(capacity),
        }
    }
}

fn key(index: &dyn Val) -> Result<&str, ExecutionError> {
    let text = index.downcast_ref::<CelString>();
    text.map(CelString::inner).ok_or_else(|| ExecutionError::no_such_key("a key that is not a string"))
}

impl DeviceValue {
    fn field(&self, index: &dyn Val) -> Result<&(dyn Val + 'static), ExecutionError> {
        match key(index)? {
            "driver" => Ok(&self.driver),
            "attributes" => Ok(&self.attributes),
            "capacity" => Ok(&self.capacity),
            // Upstream's type checker refuses this before it is evaluated.
            other => Err(ExecutionError::undeclared_reference(&format!("device.{other}"))),
        }
    }
}

impl Domains {
    fn of(entries: Entries) -> Self {
        Self(Arc::new(entries.into_iter().map(|(domain, it)| (domain, it.into())).collect()))
    }

    fn domain<'b>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'static>, ExecutionError> {
        let known = self.0.get(key(index)?);
        Ok(known.map_or_else(|| CowVal::owned(CelMap::default()), |it| CowVal::Borrowed(it)))
    }
}

impl Val for DeviceValue {
    fn get_type(&self) -> &Type {
        &DEVICE_TYPE
    }

    fn cel_type() -> &'static Type {
        &DEVICE_TYPE
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn into_indexer<'v>(self: Box<Self>) -> Option<Box<dyn Indexer + 'v>>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(self.clone())
    }
}

impl Indexer for DeviceValue {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.field(index).map(CowVal::Borrowed)
    }

    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.field(index).map(Val::clone_as_boxed)
    }
}

impl Val for Domains {
    fn get_type(&self) -> &Type {
        &DOMAINS_TYPE
    }

    fn cel_type() -> &'static Type {
        &DOMAINS_TYPE
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn into_indexer<'v>(self: Box<Self>) -> Option<Box<dyn Indexer + 'v>>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(self.clone())
    }
}

impl Indexer for Domains {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.domain(index)
    }

    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.domain(index).map(CowVal::into_owned)
    }
}

impl Container for Domains {
    fn contains(&self, value: &dyn Val) -> Result<bool, ExecutionError> {
        Ok(self.0.contains_key(key(value)?))
    }
}

impl Sizer for Domains {
    fn size(&self) -> CelInt {
        CelInt::from(i64::try_from(self.0.len()).unwrap_or(i64::MAX))
    }
}
