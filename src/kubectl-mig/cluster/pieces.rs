//! Texts that are mostly the same, kept as numbers of the pieces that they consist of.
//!
//! The ResourceSlices of equal nodes differ in a few names and UUIDs. A text is cut after every `}` and its comma, which is about every
//! 40 bytes of the JSON of a slice, and equal pieces are stored once: a text then takes a tenth of its bytes.

use std::collections::HashMap;
use std::sync::Arc;

/// Pieces, and how many texts have each.
#[derive(Debug, Clone, Default)]
pub(super) struct Pieces {
    all: Vec<Piece>,
    known: HashMap<Arc<[u8]>, u32>,
    /// Positions that no text has any more.
    vacant: Vec<u32>,
}

#[derive(Debug, Clone)]
struct Piece {
    text: Arc<[u8]>,
    /// How often it is used; 0 where the position is vacant.
    uses: u32,
}

/// A text in [`Pieces`].
#[derive(Debug, Clone)]
pub(super) struct Text {
    pieces: Box<[u32]>,
    /// Its length.
    bytes: usize,
}

impl Pieces {
    /// Adds a text.
    pub(super) fn add(&mut self, text: &[u8]) -> Text {
        let pieces = cut(text).map(|it| self.add_piece(it)).collect();
        Text { pieces, bytes: text.len() }
    }

    fn add_piece(&mut self, text: &[u8]) -> u32 {
        if let Some(known) = self.known.get(text).copied() {
            self.all[known as usize].uses += 1;
            return known;
        }
        let text: Arc<[u8]> = text.into();
        let piece = Piece { text: text.clone(), uses: 1 };
        let position = match self.vacant.pop() {
            Some(vacant) => {
                self.all[vacant as usize] = piece;
                vacant
            }
            None => {
                self.all.push(piece);
                // As many pieces as there are numbers would take hundreds of gigabytes.
                u32::try_from(self.all.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.known.insert(text, position);
        position
    }

    /// Removes a text.
    pub(super) fn remove(&mut self, text: &Text) {
        for position in &text.pieces {
            let piece = &mut self.all[*position as usize];
            piece.uses -= 1;
            if piece.uses == 0 {
                self.known.remove(&piece.text);
                piece.text = Arc::default();
                self.vacant.push(*position);
            }
        }
    }

    /// A text as it was added.
    pub(super) fn text(&self, text: &Text) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(text.bytes);
        for position in &text.pieces {
            bytes.extend_from_slice(&self.all[*position as usize].text);
        }
        bytes
    }

    /// How many different pieces there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

/// The pieces of a text, in order.
fn cut(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.windows(2).position(|it| it == b"},").map_or(rest.len(), |it| it + 2);
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_comes_back_as_it_was_and_equal_pieces_are_kept_once() {
        let mut pieces = Pieces::default();
        let texts = [
            &br#"{"a":{"b":1},"c":{"d":2},"e":[{},{}]}"#[..],
            br#"{"a":{"b":1},"c":{"d":3},"e":[{},{}]}"#,
            b"",
            b"},},}",
            b"no brace",
        ];
        let kept = texts.map(|it| pieces.add(it));
        for (text, kept) in texts.iter().zip(&kept) {
            assert_eq!(pieces.text(kept), *text);
        }
        let before = pieces.len();
        pieces.remove(&kept[0]);
        assert_eq!(pieces.len(), before - 1, "the other pieces are those of the second text, too");
        assert_eq!(pieces.text(&kept[1]), texts[1]);
        let again = pieces.add(texts[0]);
        assert_eq!((pieces.text(&again), pieces.len()), (texts[0].to_vec(), before));
        for it in [&again, &kept[1], &kept[2], &kept[3], &kept[4]] {
            pieces.remove(it);
        }
        assert_eq!(pieces.len(), 0);
    }
}
