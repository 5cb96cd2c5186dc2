//! `models.json` as it is written, and what becomes of it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{Deserializer, Error};

use crate::table::{Evidence, ModelData, Places, Row};

/// What is in the file, with sources and names looked up.
pub(crate) struct Tables {
    pub(crate) models: Vec<ModelData>,
    pub(crate) placements: Vec<Places>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    sources: BTreeMap<String, Evidence>,
    brands: BTreeMap<String, u32>,
    architectures: BTreeMap<String, u32>,
    placements: Vec<PlacesEntry>,
    models: Vec<ModelEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PlacesEntry {
    memory_units: u32,
    indices: Vec<u32>,
    size: u32,
    starts: Vec<u32>,
    default_order: Vec<u32>,
    source: String,
    #[serde(default)]
    inferred: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ModelEntry {
    name: String,
    aliases: Vec<String>,
    product_name: String,
    brand: String,
    architecture: String,
    compute_capability: (u32, u32),
    #[serde(deserialize_with = "hexadecimal")]
    pci_device: u32,
    memory_mib: u64,
    sm: u32,
    memory_units: u32,
    source: String,
    inferred: Vec<String>,
    profiles: Vec<RowEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RowEntry {
    index: u32,
    id: u32,
    name: String,
    sm: u32,
    ce: u32,
    dec: u32,
    enc: u32,
    jpeg: u32,
    ofa: u32,
    memory_mib: u64,
    max: u32,
    source: String,
    #[serde(default)]
    inferred: Vec<String>,
}

fn hexadecimal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.strip_prefix("0x").ok_or_else(|| D::Error::custom("not hexadecimal"))?;
    u32::from_str_radix(digits, 16).map_err(D::Error::custom)
}

/// Reads the file, which is part of the program; a test reads it, too.
pub(crate) fn tables() -> Tables {
    match parse(include_str!("models.json")) {
        Ok(tables) => tables,
        Err(error) => unreachable!("models.json: {error}"),
    }
}

fn parse(text: &str) -> Result<Tables, String> {
    let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let File { sources, brands, architectures, placements, models } = file;
    let source = |name: &str| sources.get(name).cloned().ok_or_else(|| format!("no source {name}"));
    let number = |names: &BTreeMap<String, u32>, name: &str| {
        names.get(name).copied().ok_or_else(|| format!("no number for {name}"))
    };
    let row = |it: RowEntry| {
        Ok(Row {
            evidence: source(&it.source)?,
            index: it.index,
            id: it.id,
            name: it.name,
            sm: it.sm,
            ce: it.ce,
            dec: it.dec,
            enc: it.enc,
            jpeg: it.jpeg,
            ofa: it.ofa,
            memory_mib: it.memory_mib,
            max: it.max,
            inferred: it.inferred,
        })
    };
    let model = |it: ModelEntry| {
        Ok(ModelData {
            brand: number(&brands, &it.brand)?,
            architecture: number(&architectures, &it.architecture)?,
            evidence: source(&it.source)?,
            name: it.name,
            aliases: it.aliases,
            product_name: it.product_name,
            brand_name: it.brand,
            architecture_name: it.architecture,
            compute_capability: it.compute_capability,
            pci_device: it.pci_device,
            memory_mib: it.memory_mib,
            sm: it.sm,
            memory_units: it.memory_units,
            inferred: it.inferred,
            rows: it.profiles.into_iter().map(row).collect::<Result<_, String>>()?,
        })
    };
    let places = |it: PlacesEntry| {
        Ok(Places {
            evidence: source(&it.source)?,
            memory_units: it.memory_units,
            indices: it.indices,
            size: it.size,
            starts: it.starts,
            default_order: it.default_order,
            inferred: it.inferred,
        })
    };
    Ok(Tables {
        models: models.into_iter().map(model).collect::<Result<_, String>>()?,
        placements: placements.into_iter().map(places).collect::<Result<_, String>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_has_places_and_every_mark_names_a_value() {
        let tables = parse(include_str!("models.json")).unwrap_or_else(|error| panic!("{error}"));
        let of_model =
            ["productName", "brand", "architecture", "computeCapability", "pciDevice", "memoryMib", "sm"];
        let of_row = ["sm", "ce", "dec", "enc", "jpeg", "ofa", "memoryMib", "max"];
        for model in &tables.models {
            assert!(model.inferred.iter().all(|it| of_model.contains(&it.as_str())), "{}", model.name);
            for row in &model.rows {
                let context = format!("{} {}", model.name, row.name);
                assert!(row.inferred.iter().all(|it| of_row.contains(&it.as_str())), "{context}");
                let is_of =
                    |it: &&Places| it.memory_units == model.memory_units && it.indices.contains(&row.index);
                assert_eq!(tables.placements.iter().filter(is_of).count(), 1, "{context}");
            }
        }
    }

    #[test]
    fn a_source_or_a_name_that_is_missing_is_an_error() {
        let text = include_str!("models.json");
        for (from, to) in [
            ("\"source\": \"lgip-a30\"", "\"source\": \"none\""),
            ("\"architecture\": \"Turing\"", "\"architecture\": \"none\""),
            ("\"0x1eb8\"", "\"1eb8\""),
            ("\"aliases\"", "\"alias\""),
        ] {
            assert!(text.contains(from) && parse(&text.replacen(from, to, 1)).is_err(), "{to}");
        }
    }
}
