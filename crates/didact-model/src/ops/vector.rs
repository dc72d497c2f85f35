//! Loops that the compiler may turn into the vector instructions of the machine at hand.

/// Defines a function whose body is compiled for the machine's instructions (see `didact_kernels::vectorize`). What the
/// body calls must be `#[inline(always)]`.
macro_rules! vectorized {
    (
        $(#[$meta:meta])*
        fn $name:ident<$life:lifetime, $($generic:ident: $bound:path),+>($($arg:ident: $ty:ty),* $(,)?)
        -> $ret:ty $body:block
    ) => {
        $(#[$meta])*
        fn $name<$life, $($generic: $bound),+>($($arg: $ty),*) -> $ret {
            struct Body<$life, $($generic: $bound),+> {
                $($arg: $ty,)*
                marker: std::marker::PhantomData<(&$life (), $($generic,)+)>,
            }
            impl<$life, $($generic: $bound),+> didact_kernels::vectorize::Work for Body<$life, $($generic),+> {
                type Output = $ret;

                #[inline(always)]
                fn run(self) -> $ret {
                    let Self { $($arg,)* marker: _ } = self;
                    $body
                }
            }
            didact_kernels::vectorize::vectorize(Body::<$life, $($generic),+> {
                $($arg,)*
                marker: std::marker::PhantomData,
            })
        }
    };
}
pub(crate) use vectorized;
