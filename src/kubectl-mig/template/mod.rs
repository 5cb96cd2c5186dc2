//! Nodes without a machine: what the driver would publish on a node with GPUs of these models, by the code that the node runs.
//!
//! ```text
//! mig-models (tables) -> facts -> mig-model (inventory, layout, slices)
//! ```

mod args;
mod facts;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};

use k8s_openapi::api::resource::v1::ResourceSlice;
use mig_model::facts::{GpuFacts, NodeFacts};
use mig_model::inventory::{AttributeSet, Gpu, Inventory, OfferPolicy, inventory_on};
use mig_model::layout::{self, FileError, GpuLayout, LayoutFile, Layouts, Refusal};
use mig_model::placement::{Policy, Ranking};
use mig_model::slices::{Change, Owner, diff, render};
use mig_models::Model;

pub use self::args::{Gpus, MigMode, TemplateArgs, gpus};

/// What `--layout` is called for a node without the label.
const NO_LABEL: &str = "default";

/// Why there are no such nodes.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The layout file cannot be read.
    #[error("cannot read the layouts of `{path}`: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The layout file cannot be used.
    #[error("{0}")]
    File(#[from] FileError),
    /// The layout does not fit the GPUs.
    #[error("--layout {name}: {refusal}")]
    Layout {
        /// The layout.
        name: String,
        /// Why not.
        refusal: Refusal,
    },
    /// Nothing is chosen from the file.
    #[error("--layouts needs --layout, which names one of the layouts of the file")]
    NoLayout,
}

/// A node without a machine.
#[derive(Debug, Clone)]
pub struct NodeTemplate {
    /// Its GPUs, by NVML index.
    pub gpus: Vec<Gpu>,
    /// What it publishes.
    pub inventory: Inventory,
    policy: Policy,
}

impl NodeTemplate {
    /// A node with these GPUs, whose API server keeps counters, or not.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn new(models: &[Model], args: &TemplateArgs, keeps_counters: bool) -> Result<Self, TemplateError> {
        let file = args.layouts.as_ref().map(|path| read(&path.display().to_string())).transpose()?;
        match (&args.layout, file) {
            (Some(name), file) => Self::in_layout(models, args, name, file.as_ref()),
            (None, Some(_)) => Err(TemplateError::NoLayout),
            (None, None) if !keeps_counters => Self::in_layout(models, args, NO_LABEL, None),
            (None, None) => Ok(Self::counted(models, args)),
        }
    }

    fn counted(models: &[Model], args: &TemplateArgs) -> Self {
        let is_on = args.mig_mode == MigMode::On;
        let gpus = gpus_of(models, |_| is_on);
        let inventory = inventory_of(&gpus, args).with_profiles(&args.profiles, &BTreeSet::new());
        Self { gpus, inventory, policy: args.placement }
    }

    fn in_layout(
        models: &[Model],
        args: &TemplateArgs,
        name: &str,
        file: Option<&LayoutFile>,
    ) -> Result<Self, TemplateError> {
        let facts: Vec<GpuFacts> = gpus_of(models, |_| true).iter().map(|it| (*it.facts).clone()).collect();
        let label = (name != NO_LABEL).then_some(name);
        let layouts = layout::choose(label, file, &facts)
            .map_err(|refusal| TemplateError::Layout { name: name.to_owned(), refusal })?;
        Ok(Self::with_layouts(models, args, &layouts))
    }

    /// A node whose GPUs are offered as these layouts say.
    #[must_use]
    pub fn with_layouts(models: &[Model], args: &TemplateArgs, layouts: &Layouts) -> Self {
        let names: Vec<String> = inventory_of(&gpus_of(models, |_| true), args)
            .gpus
            .into_iter()
            .map(|it| it.counter_set)
            .collect();
        // GPUs are in the order of their PCI addresses there and of their indices here, which is the same.
        let is_cut = |index: usize| match names.get(index).and_then(|name| layouts.get(name)) {
            Some(GpuLayout::Cut(_)) => true,
            Some(GpuLayout::Free { cut, .. }) => *cut,
            Some(GpuLayout::Whole) | None => false,
        };
        let gpus = gpus_of(models, is_cut);
        let offer = layout::apply(&inventory_of(&gpus, args), layouts, &BTreeSet::new());
        Self { gpus, inventory: offer.inventory, policy: args.placement }
    }

    /// The slices that the node publishes. Without a UID of the Node they have no owner.
    #[must_use]
    pub fn slices(&self, driver: &str, node: &str, node_uid: Option<&str>) -> Vec<ResourceSlice> {
        let owner = Owner {
            driver: driver.to_owned(),
            node: node.to_owned(),
            node_uid: node_uid.unwrap_or_default().to_owned(),
        };
        let ranking = Ranking::of(&self.inventory, &BTreeSet::new(), self.policy);
        let inventory = self.inventory.clone().with_attributes(AttributeSet::of_driver(driver));
        let changes = diff(render(&inventory, &ranking, &owner), &[]);
        let created = changes.into_iter().filter_map(|change| match change {
            Change::Create(slice) => Some(slice),
            Change::Update(_) | Change::Delete(_) => None,
        });
        let mut slices: Vec<ResourceSlice> = created.collect();
        if node_uid.is_none() {
            slices.iter_mut().for_each(|it| it.metadata.owner_references = None);
        }
        slices
    }
}

/// What to warn of: patterns of `--profiles` that name no profile of these GPUs, or that a layout leaves without effect.
#[must_use]
pub fn warnings(models: &[Model], args: &TemplateArgs) -> Vec<String> {
    if args.profiles.is_everything() {
        return Vec::new();
    }
    if args.layout.is_some() {
        return vec!["--profiles has no effect with --layout: a layout names its profiles".to_owned()];
    }
    let inventory = inventory_of(&gpus_of(models, |_| true), args);
    let devices = inventory.gpus.iter().flat_map(|it| it.devices.iter().chain(&it.withheld));
    let profiles: BTreeSet<&str> = devices.map(|it| it.mig().map_or("full", |it| &it.profile)).collect();
    let names = profiles.iter().copied().collect::<Vec<_>>().join(", ");
    let say = |pattern: &str| {
        format!("the pattern `{pattern}` of --profiles matches no profile of these GPUs, which have {names}")
    };
    args.profiles.without_effect(&profiles).map(say).collect()
}

fn gpus_of(models: &[Model], is_mig_on: impl Fn(usize) -> bool) -> Vec<Gpu> {
    models.iter().enumerate().map(|(index, model)| facts::gpu(*model, index, is_mig_on(index))).collect()
}

fn inventory_of(gpus: &[Gpu], args: &TemplateArgs) -> Inventory {
    let node = NodeFacts {
        driver_version: Some(args.driver_version.clone()),
        cuda_version: Some(args.cuda_version),
        ..NodeFacts::default()
    };
    // The name of the driver decides what of these is published.
    let attributes = AttributeSet::AsNvidia;
    let policy = OfferPolicy { attributes, time_slices: args.time_slices, ..OfferPolicy::default() };
    inventory_on(&node, gpus, &policy)
}

fn read(path: &str) -> Result<LayoutFile, TemplateError> {
    let failed = |source| TemplateError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    // One byte more than allowed shows that the file is too large.
    let limit = u64::try_from(layout::MAX_FILE).unwrap_or(u64::MAX) + 1;
    File::open(path).map_err(failed)?.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    Ok(LayoutFile::parse(path, &bytes)?)
}
