//! Frames from the pieces in which a stream arrives.

use bytes::{Bytes, BytesMut};
use quinn::{ReadError, RecvStream};

use crate::aligned::AlignedBuf;
use crate::frame::{Frame, FrameError, PREFIX};

/// Bodies of at least this size are put into memory from which a device can write with O_DIRECT.
const ALIGNED_BODY: usize = 64 << 10;

enum Body {
    Plain(BytesMut),
    Aligned(AlignedBuf),
}

/// Puts one frame together.
pub(super) struct Assembler {
    prefix: [u8; PREFIX],
    have: usize,
    rest: Option<Rest>,
    whole: Option<Frame>,
}

struct Rest {
    head_len: usize,
    body_len: usize,
    head: BytesMut,
    body: Body,
}

impl Rest {
    fn new(head_len: usize, body_len: usize) -> Self {
        Self {
            head_len,
            body_len,
            head: BytesMut::with_capacity(head_len),
            body: if body_len >= ALIGNED_BODY {
                Body::Aligned(AlignedBuf::with_capacity(body_len))
            } else {
                Body::Plain(BytesMut::with_capacity(body_len))
            },
        }
    }

    fn body_have(&self) -> usize {
        match &self.body {
            Body::Plain(body) => body.len(),
            Body::Aligned(body) => body.len(),
        }
    }

    fn push(&mut self, mut piece: Bytes) -> Result<(), FrameError> {
        let head = piece.split_to(piece.len().min(self.head_len - self.head.len()));
        self.head.extend_from_slice(&head);
        if piece.len() > self.body_len - self.body_have() {
            return Err(FrameError::Length);
        }
        match &mut self.body {
            Body::Plain(body) => body.extend_from_slice(&piece),
            Body::Aligned(body) => {
                body.extend(&piece);
            }
        }
        Ok(())
    }
}

impl Assembler {
    pub(super) fn new() -> Self {
        Self {
            prefix: [0; PREFIX],
            have: 0,
            rest: None,
            whole: None,
        }
    }

    /// Bytes of body that the frame announces, once that is known.
    pub(super) fn announced(&self) -> usize {
        self.rest.as_ref().map_or(0, |rest| rest.body_len)
    }

    /// Takes the next piece.
    pub(super) fn push(&mut self, mut piece: Bytes) -> Result<(), FrameError> {
        if piece.is_empty() {
            return Ok(());
        }
        if self.whole.is_some() {
            return Err(FrameError::Length);
        }
        if self.rest.is_none() {
            let wanted = (PREFIX - self.have).min(piece.len());
            let front = piece.split_to(wanted);
            self.prefix[self.have..self.have + wanted].copy_from_slice(&front);
            self.have += wanted;
            if self.have < PREFIX {
                return Ok(());
            }
            let (head_len, body_len) = Frame::lengths(self.prefix)?;
            if piece.len() == head_len + body_len && body_len < ALIGNED_BODY {
                self.whole = Some(whole(piece, head_len));
                return Ok(());
            }
            self.rest = Some(Rest::new(head_len, body_len));
        }
        match &mut self.rest {
            Some(rest) => rest.push(piece),
            None => Err(FrameError::Length),
        }
    }

    /// The frame, once the stream has ended.
    pub(super) fn finish(self) -> Result<Frame, FrameError> {
        if let Some(frame) = self.whole {
            return Ok(frame);
        }
        let rest = self.rest.ok_or(FrameError::Length)?;
        if rest.head.len() != rest.head_len || rest.body_have() != rest.body_len {
            return Err(FrameError::Length);
        }
        Ok(Frame {
            head: rest.head.freeze(),
            body: match rest.body {
                Body::Plain(body) => body.freeze(),
                Body::Aligned(body) => body.freeze(),
            },
        })
    }
}

/// A frame that came in one piece. A body that is a small part of it is copied, so that who keeps it does not keep the
/// datagram.
fn whole(mut piece: Bytes, head_len: usize) -> Frame {
    let head = piece.split_to(head_len);
    let body = if piece.len() < head_len || piece.len() < 1024 {
        Bytes::copy_from_slice(&piece)
    } else {
        piece
    };
    Frame { head, body }
}

/// Why no frame could be read.
#[derive(Debug)]
pub(super) enum ReadFault {
    /// The stream or the connection ended.
    Stream(ReadError),
    /// What came is not a frame.
    Frame(FrameError),
    /// `admit` refused the body.
    NoRoom,
}

/// Reads the frame that a stream carries, to the end of the stream. `admit` is asked once, before a large body is
/// received.
pub(super) async fn read_frame(
    recv: &mut RecvStream,
    mut admit: impl FnMut(usize) -> bool,
) -> Result<Frame, ReadFault> {
    let mut assembler = Assembler::new();
    let mut pieces: [Bytes; 16] = std::array::from_fn(|_| Bytes::new());
    let mut asked = false;
    while let Some(count) = recv
        .read_chunks(&mut pieces)
        .await
        .map_err(ReadFault::Stream)?
    {
        for piece in &mut pieces[..count] {
            assembler
                .push(std::mem::take(piece))
                .map_err(ReadFault::Frame)?;
            if !asked && assembler.announced() >= ALIGNED_BODY {
                asked = true;
                if !admit(assembler.announced()) {
                    return Err(ReadFault::NoRoom);
                }
            }
        }
    }
    assembler.finish().map_err(ReadFault::Frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::mem::encode;
    use proptest::prelude::*;

    fn assemble(bytes: &Bytes, mut cuts: Vec<usize>) -> Result<Frame, FrameError> {
        cuts.iter_mut().for_each(|cut| *cut %= bytes.len() + 1);
        cuts.sort_unstable();
        let mut assembler = Assembler::new();
        let mut from = 0;
        for cut in cuts.into_iter().chain([bytes.len()]) {
            assembler.push(bytes.slice(from..cut))?;
            from = cut;
        }
        assembler.finish()
    }

    proptest! {
        #[test]
        fn any_pieces_make_the_frame(
            head in proptest::collection::vec(any::<u8>(), 0..300),
            body in prop_oneof![0usize..3_000, 65_530usize..65_550],
            cuts in proptest::collection::vec(any::<usize>(), 0..6),
        ) {
            let body: Vec<u8> = (0..body).map(|at| at as u8).collect();
            let frame = Frame { head: head.into(), body: body.into() };
            prop_assert_eq!(assemble(&encode(&frame), cuts), Ok(frame));
        }

        #[test]
        fn missing_or_added_bytes_are_refused(
            body in 0usize..3_000,
            cut in 1usize..4_000,
            cuts in proptest::collection::vec(any::<usize>(), 0..6),
        ) {
            let frame = Frame { head: vec![1; 9].into(), body: vec![2; body].into() };
            let good = encode(&frame);
            let short = good.slice(..good.len() - cut.min(good.len()));
            prop_assert_eq!(assemble(&short, cuts.clone()), Err(FrameError::Length));
            let mut long = good.to_vec();
            long.push(0);
            prop_assert_eq!(assemble(&long.into(), cuts), Err(FrameError::Length));
        }
    }

    #[test]
    fn large_bodies_are_aligned_and_lengths_bounded() {
        let frame = Frame {
            head: Bytes::from_static(b"h"),
            body: vec![3; 256 << 10].into(),
        };
        let made = assemble(&encode(&frame), vec![1000, 77_777]).unwrap();
        assert_eq!(made.body.as_ptr() as usize % crate::aligned::ALIGN, 0);
        assert_eq!(made, frame);
        let mut assembler = Assembler::new();
        let huge = Bytes::from_static(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert!(matches!(
            assembler.push(huge),
            Err(FrameError::BodyTooLong(_))
        ));
    }
}
