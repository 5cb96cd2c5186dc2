//! Requests in the one form that the search works on.

use cel::Program;
use k8s_openapi::api::resource::v1::{DeviceClass, DeviceSelector, DeviceToleration, ResourceClaim};

use crate::cel_env;
use crate::{Cluster, Refusal};

/// How many devices a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Amount {
    Exactly(usize),
    All,
}

/// A request, or one alternative of it.
#[derive(Debug)]
pub(super) struct Wanted {
    /// `request`, or `request/alternative`.
    pub(super) name: String,
    pub(super) class: String,
    pub(super) amount: Amount,
    pub(super) admin: bool,
    /// The class's selectors, then the request's.
    pub(super) selectors: Vec<Program>,
    pub(super) tolerations: Vec<DeviceToleration>,
}

/// The alternatives of a request; one for a plain request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) alternatives: Vec<Wanted>,
}

/// The requests of every claim.
pub(super) fn read(cluster: &Cluster<'_>, claims: &[ResourceClaim]) -> Result<Vec<Vec<Request>>, Refusal> {
    claims.iter().map(|claim| of_claim(cluster, claim)).collect()
}

fn of_claim(cluster: &Cluster<'_>, claim: &ResourceClaim) -> Result<Vec<Request>, Refusal> {
    let devices = claim.spec.devices.as_ref();
    let mut requests = Vec::new();
    for request in devices.and_then(|d| d.requests.as_deref()).unwrap_or_default() {
        let mut alternatives = Vec::new();
        if let Some(exactly) = &request.exactly {
            alternatives.push(Wanted {
                name: request.name.clone(),
                class: exactly.device_class_name.clone(),
                amount: amount(claim, exactly.allocation_mode.as_deref(), exactly.count)?,
                admin: exactly.admin_access == Some(true),
                selectors: selectors(
                    cluster,
                    claim,
                    &exactly.device_class_name,
                    exactly.selectors.as_deref(),
                )?,
                tolerations: exactly.tolerations.clone().unwrap_or_default(),
            });
        }
        for one in request.first_available.iter().flatten() {
            alternatives.push(Wanted {
                name: format!("{}/{}", request.name, one.name),
                class: one.device_class_name.clone(),
                amount: amount(claim, one.allocation_mode.as_deref(), one.count)?,
                admin: false,
                selectors: selectors(cluster, claim, &one.device_class_name, one.selectors.as_deref())?,
                tolerations: one.tolerations.clone().unwrap_or_default(),
            });
        }
        requests.push(Request { alternatives });
    }
    Ok(requests)
}

fn amount(claim: &ResourceClaim, mode: Option<&str>, count: Option<i64>) -> Result<Amount, Refusal> {
    match mode {
        Some("All") => Ok(Amount::All),
        None | Some("ExactCount") => Ok(Amount::Exactly(usize::try_from(count.unwrap_or(1)).unwrap_or(0))),
        Some(other) => Err(Refusal::in_claim(claim, format!("unsupported allocation mode {other}"))),
    }
}

fn selectors(
    cluster: &Cluster<'_>,
    claim: &ResourceClaim,
    class: &str,
    own: Option<&[DeviceSelector]>,
) -> Result<Vec<Program>, Refusal> {
    let class: &DeviceClass = cluster
        .classes
        .get(class)
        .ok_or_else(|| Refusal::in_claim(claim, format!("device class {class} does not exist")))?;
    let of_class = class.spec.selectors.as_deref().unwrap_or_default();
    let all = of_class.iter().chain(own.unwrap_or_default());
    all.filter_map(|s| s.cel.as_ref())
        .map(|cel| cel_env::compile(&cel.expression).map_err(|e| Refusal::in_claim(claim, e)))
        .collect()
}
