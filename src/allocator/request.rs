//! Requests in the one form that the search works on.

use k8s_openapi::api::resource::v1::{
    DeviceClass, DeviceRequest, DeviceSelector, DeviceToleration, ResourceClaim,
};
use serde::Serialize;

use crate::allocated::ClaimRef;
use crate::cluster::{Cluster, MAX_DEVICES};
use crate::refusal::Abort;

/// How many devices a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Amount {
    /// So many.
    Exactly(usize),
    /// Every device that its selectors choose.
    All,
}

/// A request, or one alternative of it.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    /// `request`, or `request/alternative`.
    pub(crate) name: String,
    pub(crate) class: &'a DeviceClass,
    pub(crate) amount: Amount,
    pub(crate) admin: bool,
    pub(crate) selectors: &'a [DeviceSelector],
    pub(crate) tolerations: &'a [DeviceToleration],
    /// What [`Amount::All`] takes: indices of candidates.
    pub(crate) all: Vec<usize>,
}

impl Wanted<'_> {
    /// Devices that it takes.
    pub(crate) fn count(&self) -> usize {
        match self.amount {
            Amount::Exactly(count) => count,
            Amount::All => self.all.len(),
        }
    }
}

/// A request as written: what it names, before that is looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written<'a> {
    pub(crate) request: &'a DeviceRequest,
    /// The alternative's name, for an entry of `firstAvailable`.
    pub(crate) alternative: Option<&'a str>,
    pub(crate) class: &'a str,
    mode: Option<&'a str>,
    count: Option<i64>,
    admin: Option<bool>,
    selectors: &'a [DeviceSelector],
    tolerations: &'a [DeviceToleration],
}

/// The alternatives of a request; one for a plain request, none for a request of an unknown kind.
pub(crate) fn written(request: &DeviceRequest) -> Vec<Written<'_>> {
    let listed = request.first_available.iter().flatten().map(|one| Written {
        request,
        alternative: Some(&one.name),
        class: &one.device_class_name,
        mode: one.allocation_mode.as_deref(),
        count: one.count,
        admin: None,
        selectors: one.selectors.as_deref().unwrap_or_default(),
        tolerations: one.tolerations.as_deref().unwrap_or_default(),
    });
    let listed: Vec<_> = listed.collect();
    if !listed.is_empty() {
        return listed;
    }
    let exactly = request.exactly.iter().map(|exactly| Written {
        request,
        alternative: None,
        class: &exactly.device_class_name,
        mode: exactly.allocation_mode.as_deref(),
        count: exactly.count,
        admin: exactly.admin_access,
        selectors: exactly.selectors.as_deref().unwrap_or_default(),
        tolerations: exactly.tolerations.as_deref().unwrap_or_default(),
    });
    exactly.collect()
}

impl<'a> Written<'a> {
    pub(crate) fn name(&self) -> String {
        match self.alternative {
            Some(alternative) => format!("{}/{alternative}", self.request.name),
            None => self.request.name.clone(),
        }
    }

    /// Whether another request asks for the same, whatever the names are.
    pub(crate) fn is_equal(&self, other: &Self) -> bool {
        let asked = |it: &Self| (it.class, it.mode, it.count, it.admin, it.alternative.is_some());
        asked(self) == asked(other)
            && (self.selectors, self.tolerations) == (other.selectors, other.tolerations)
    }

    /// `None` for a mode that is not known.
    pub(crate) fn amount(&self) -> Option<Amount> {
        match self.mode {
            Some("All") => Some(Amount::All),
            None | Some("ExactCount" | "") => {
                Some(Amount::Exactly(usize::try_from(self.count.unwrap_or(1)).unwrap_or(0)))
            }
            Some(_) => None,
        }
    }

    /// Looks the class up and checks the form.
    pub(crate) fn resolve(&self, cluster: &Cluster<'a>, claim: &ResourceClaim) -> Result<Wanted<'a>, Abort> {
        let unsupported =
            |why: String| Abort::Unsupported { claim: ClaimRef::of(claim), request: self.name(), why };
        if self.alternative.is_some() && !cluster.features.prioritized_list {
            return Err(unsupported(
                "has subrequests, but the DRAPrioritizedList feature is disabled".into(),
            ));
        }
        if let Some(index) = self.selectors.iter().position(|s| s.cel.is_none()) {
            return Err(unsupported(format!(
                "selector #{index}: CEL expression empty (unsupported selector type?)"
            )));
        }
        if self.admin.is_some() && !cluster.features.admin_access {
            return Err(unsupported("admin access is requested, but the feature is disabled".into()));
        }
        let Some(class) = cluster.classes.get(self.class) else {
            let (claim, request) = (ClaimRef::of(claim), self.name());
            return Err(Abort::ClassMissing { claim, request, class: self.class.to_owned() });
        };
        let Some(amount) = self.amount() else {
            return Err(unsupported(format!("unsupported count mode {}", self.mode.unwrap_or_default())));
        };
        Ok(Wanted {
            name: self.name(),
            class,
            amount,
            admin: self.admin == Some(true),
            selectors: self.selectors,
            tolerations: self.tolerations,
            all: Vec::new(),
        })
    }
}

/// The requests of a claim.
pub(crate) fn requests(claim: &ResourceClaim) -> &[DeviceRequest] {
    claim.spec.devices.as_ref().and_then(|d| d.requests.as_deref()).unwrap_or_default()
}

/// Refuses a claim that asks for more devices than fit into a result, by the fewest that it can do with.
pub(crate) fn check_total(claim: &ResourceClaim, requests: &[Vec<Wanted<'_>>]) -> Result<(), Abort> {
    let fewest = requests.iter().map(|list| list.iter().map(Wanted::count).min().unwrap_or(0));
    let requested = fewest.fold(0_usize, usize::saturating_add);
    if requested > MAX_DEVICES {
        return Err(Abort::TooManyDevices { claim: ClaimRef::of(claim), requested, limit: MAX_DEVICES });
    }
    Ok(())
}
