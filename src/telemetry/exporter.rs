//! What is shown, and its text.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// What the names of our metrics begin with.
pub const PREFIX: &str = "dra_mig";

/// All that `/metrics` shows.
#[derive(Debug)]
pub struct Exporter {
    registry: Registry,
}

impl Exporter {
    /// Shows the version of a program, under this name and help text, and what `register` adds; all with `dra_mig_` before their
    /// names.
    #[must_use]
    pub fn new(name: &str, help: &str, version: &'static str, register: impl FnOnce(&mut Registry)) -> Self {
        let mut registry = Registry::default();
        let ours = registry.sub_registry_with_prefix(PREFIX);
        ours.register(name, help, Info::new(vec![("version", version)]));
        register(ours);
        Self { registry }
    }

    /// Shows these, too, with `dra_mig_` before their names.
    pub fn show(&mut self, numbers: impl Collector) {
        self.registry.sub_registry_with_prefix(PREFIX).register_collector(Box::new(numbers));
    }

    /// Shows these, too, under the names that they have.
    pub fn show_as_named(&mut self, numbers: impl Collector) {
        self.registry.register_collector(Box::new(numbers));
    }

    /// The numbers of this moment, as OpenMetrics text, which is about so many bytes long.
    #[must_use]
    pub fn text(&self, bytes: usize) -> String {
        // A little more is no reason to double it.
        let mut text = String::with_capacity(bytes + bytes / 8);
        // Writing to a String does not fail, and what is half written would be refused for its missing end.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}
