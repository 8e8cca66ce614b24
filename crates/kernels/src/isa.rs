//! Which instruction set the kernels use, chosen at run time.

#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected;
use std::fmt;

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust for the target's baseline.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// The same with AMX tiles of 8-bit integers.
    Amx,
    /// What every aarch64 has: NEON with fused multiply-add.
    Neon,
    /// The same with dot products of 8-bit integers.
    NeonDot,
}

impl Isa {
    /// The widest set that this machine has.
    #[must_use]
    pub fn detect() -> Self {
        *Self::available().last().unwrap_or(&Self::Portable)
    }

    /// All sets that this machine has, narrowest first. Tests run each.
    #[must_use]
    pub fn available() -> Vec<Self> {
        #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), expect(unused_mut))]
        let mut sets = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                sets.push(Self::Avx2);
            }
            if sets.len() == 2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                sets.push(Self::Avx512);
            }
            if sets.len() == 3 && crate::matmul::amx::is_available() {
                sets.push(Self::Amx);
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            if is_aarch64_feature_detected!("neon") {
                sets.push(Self::Neon);
            }
            if sets.len() == 2 && is_aarch64_feature_detected!("dotprod") {
                sets.push(Self::NeonDot);
            }
        }
        sets
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512 VNNI",
            Self::Amx => "AMX",
            Self::Neon => "NEON",
            Self::NeonDot => "NEON with dot products",
        })
    }
}

/// Whether the portable build has fused multiply-add as an instruction, not as a library call.
pub(crate) const PORTABLE_FMA: bool = cfg!(target_arch = "aarch64");

/// Defines `fn $name(isa, args…)` that runs `$body::<FMA>(args…)` compiled for `isa`.
///
/// `$body` is an `#[inline(always)]` function of one `const FMA: bool`, so that its loops are
/// vectorised anew inside each `#[target_feature]` function.
/// On aarch64 the baseline is all that such loops have a use for.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$lt:lifetime>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$lt>)? (isa: $crate::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx512 $(<$lt>)? ($($arg: $ty),*) $(-> $ret)? { $body::<true>($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx2 $(<$lt>)? ($($arg: $ty),*) $(-> $ret)? { $body::<true>($($arg),*) }
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` other than portable is only made by `Isa::available`, which
                // checked that this machine has the features.
                $crate::isa::Isa::Avx512 | $crate::isa::Isa::Amx => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => $body::<{ $crate::isa::PORTABLE_FMA }>($($arg),*),
            }
        }
    };
}
pub(crate) use multiversion;

#[cfg(test)]
mod tests {
    use super::*;

    /// `scripts/aarch64.sh` reads what this prints.
    #[test]
    fn sets_come_narrowest_first() {
        let sets = Isa::available();
        let names: Vec<String> = sets.iter().map(Isa::to_string).collect();
        println!("sets: {}", names.join(", "));
        assert_eq!(sets[0], Isa::Portable);
        assert!(sets.is_sorted());
        assert_eq!(Isa::detect(), *sets.last().expect("at least the portable one"));
    }
}
