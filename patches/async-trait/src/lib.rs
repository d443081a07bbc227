//! A replacement for the published `async-trait` macro that makes the whole build compile faster.
//!
//! The published macro gives each borrowed argument a lifetime of its own and ties them together in a `where` clause.
//! rustc does not cache auto-trait results for functions with `where` clauses, so for each method that takes one of
//! DataFusion's expressions it proves again that the whole SQL syntax tree is `Send`: three minutes of a cold build.
//! This macro gives all borrowed arguments one lifetime, and a method that is not generic needs no `where` clause.
//! Callers are unaffected as long as their borrows can be shortened, which the compiler does by itself; where they
//! cannot, the build fails.
//!
//! A trait and its implementations must be expanded by the same macro, so this crate replaces the published one
//! everywhere (`[patch.crates-io]`). Remove it with DataFusion 56, which writes its costly methods out by hand.
//!
//! ```text
//! async fn scan(&self, state: &dyn Session, limit: Option<usize>) -> Result<Plan> { body }
//!
//! fn scan<'async_trait>(&'async_trait self, state: &'async_trait dyn Session, limit: Option<usize>)
//!     -> Pin<Box<dyn Future<Output = Result<Plan>> + Send + 'async_trait>>
//! { Box::pin(async move { let state = state; let limit = limit; { body } }) }
//! ```

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::visit_mut::{self, VisitMut};
use syn::{
    Block, FnArg, GenericParam, Ident, ImplItem, ItemImpl, ItemTrait, Lifetime, Pat, PatType,
    Receiver, ReceiverKind, ReturnType, Signature, TraitItem, Type, TypeParamBound, TypeReference,
    parse_quote,
};

/// The lifetime shared by all borrowed arguments.
const SHARED: &str = "'async_trait";

/// Makes the `async fn`s of a trait, or of an implementation of one, return boxed futures that are `Send`.
#[proc_macro_attribute]
pub fn async_trait(
    arguments: proc_macro::TokenStream,
    item: proc_macro::TokenStream,
) -> proc_macro::TokenStream {
    let item = TokenStream::from(item);
    if !arguments.is_empty() {
        let message = "this async_trait takes no arguments";
        return quote!(::core::compile_error!(#message);).into();
    }
    let expanded = if let Ok(mut item) = syn::parse2::<ItemTrait>(item.clone()) {
        expand_trait(&mut item);
        item.into_token_stream()
    } else {
        match syn::parse2::<ItemImpl>(item) {
            Ok(mut item) => {
                expand_impl(&mut item);
                item.into_token_stream()
            }
            Err(error) => error.into_compile_error(),
        }
    };
    expanded.into()
}

fn expand_trait(item: &mut ItemTrait) {
    let already: Vec<Ident> = item.supertraits.iter().filter_map(name_of).collect();
    for method in &mut item.items {
        let TraitItem::Fn(method) = method else {
            continue;
        };
        if method.sig.asyncness.is_none() {
            continue;
        }
        // The future of a default body holds `self`, which must therefore be `Send`.
        if method.default.is_some() {
            let needs = method.sig.receiver().map_or_else(Vec::new, needs_of_self);
            for need in needs.into_iter().filter(|need| !already.contains(need)) {
                let clause = method.sig.generics.make_where_clause();
                clause
                    .predicates
                    .push(parse_quote!(Self: ::core::marker::#need));
            }
        }
        let signature = &mut method.sig;
        let body = expand_signature(signature);
        if let Some(block) = &mut method.default {
            body.expand(block);
        }
    }
}

fn expand_impl(item: &mut ItemImpl) {
    for method in &mut item.items {
        if let ImplItem::Fn(method) = method
            && method.sig.asyncness.is_some()
        {
            expand_signature(&mut method.sig).expand(&mut method.block);
        }
    }
}

fn name_of(bound: &TypeParamBound) -> Option<Ident> {
    match bound {
        TypeParamBound::Trait(bound) => Some(bound.path.segments.last()?.ident.clone()),
        _ => None,
    }
}

/// Returns the bounds on `Self` that make a future with such a receiver `Send`.
fn needs_of_self(receiver: &Receiver) -> Vec<Ident> {
    let names: &[&str] = match &receiver.kind {
        ReceiverKind::Reference(_, _, None) => &["Sync"],
        ReceiverKind::Typed(..) => &["Send", "Sync"],
        _ => &["Send"],
    };
    let marker = |name: &&str| Ident::new(name, Span::call_site());
    names.iter().map(marker).collect()
}

/// What comes before the body of a method.
struct Prologue {
    /// Moves each argument into the future as a whole, so that it is dropped there even if the body does not use it.
    /// Not `self`: one that is taken by value and not used is dropped at the call, which the published macro does later.
    moves: TokenStream,
    output: Type,
}

impl Prologue {
    fn expand(&self, block: &mut Block) {
        let Self { moves, output } = self;
        let typed = match output {
            Type::Never(_) => TokenStream::new(),
            // Never runs. It fixes the type of the future's output before the body is checked, as a signature would.
            output => quote! {
                #[allow(clippy::all, unreachable_code)]
                if false {
                    let __ret: #output = loop {};
                    return __ret;
                }
            },
        };
        *block = parse_quote!({
            // The block keeps its own braces: their edition decides when temporaries of the last expression are dropped.
            ::std::boxed::Box::pin(async move { #moves #typed #[allow(unused_braces)] #block })
        });
    }
}

fn expand_signature(signature: &mut Signature) -> Prologue {
    signature.asyncness = None;
    let shared = Lifetime::new(SHARED, Span::call_site());
    let mut lifetimes = Lifetimes {
        shared: shared.clone(),
        apart: Vec::new(),
        mutable: false,
    };
    let mut moves = TokenStream::new();
    for (position, argument) in signature.inputs.iter_mut().enumerate() {
        match argument {
            FnArg::Receiver(receiver) => match &mut receiver.kind {
                ReceiverKind::Reference(_, lifetime, _) => {
                    lifetime.get_or_insert_with(|| shared.clone());
                }
                ReceiverKind::Typed(_, typed) => lifetimes.visit_type_mut(typed),
                _ => {}
            },
            FnArg::Typed(argument) => {
                lifetimes.visit_type_mut(&mut argument.ty);
                moves.extend(moved(argument, position));
            }
        }
    }
    let mut output: Type = match &signature.output {
        ReturnType::Default => parse_quote!(()),
        ReturnType::Type(_, output) => output.as_ref().clone(),
    };
    OfOutput(&shared).visit_type_mut(&mut output);
    bind_lifetimes(signature, &shared, lifetimes.apart);
    signature.output = parse_quote! {
        -> ::core::pin::Pin<::std::boxed::Box<
            dyn ::core::future::Future<Output = #output> + ::core::marker::Send + #shared
        >>
    };
    Prologue { moves, output }
}

/// Declares the lifetimes of a method and requires its type parameters to outlive the future.
fn bind_lifetimes(signature: &mut Signature, shared: &Lifetime, apart: Vec<Lifetime>) {
    let by_value = signature
        .receiver()
        .is_some_and(|receiver| !matches!(receiver.kind, ReceiverKind::Reference(..)));
    let mut outliving: Vec<TokenStream> = Vec::new();
    for parameter in &signature.generics.params {
        match parameter {
            GenericParam::Type(parameter) => outliving.push(parameter.ident.to_token_stream()),
            GenericParam::Lifetime(parameter) => {
                outliving.push(parameter.lifetime.to_token_stream());
            }
            GenericParam::Const(_) => {}
        }
    }
    outliving.extend(apart.iter().map(ToTokens::to_token_stream));
    if by_value {
        outliving.push(quote!(Self));
    }
    if !outliving.is_empty() {
        let clause = signature.generics.make_where_clause();
        for each in outliving {
            clause.predicates.push(parse_quote!(#each: #shared));
        }
    }
    let own = apart.into_iter().chain([shared.clone()]);
    for (position, lifetime) in own.enumerate() {
        signature
            .generics
            .params
            .insert(position, parse_quote!(#lifetime));
    }
}

/// Replaces an argument's pattern by a name and returns the statement that binds the pattern in the body.
fn moved(argument: &mut PatType, position: usize) -> TokenStream {
    let attributes = &argument.attrs;
    if let Pat::Ident(pattern) = argument.pat.as_mut()
        && pattern.by_ref.is_none()
        && pattern.subpat.is_none()
    {
        let name = &pattern.ident;
        let mutability = pattern.mutability.take();
        return quote!(#(#attributes)* let #mutability #name = #name;);
    }
    let name = format_ident!("__arg{position}");
    let pattern = std::mem::replace(argument.pat.as_mut(), parse_quote!(#name));
    // A pattern on its own would capture only the parts that it names.
    quote!(#(#attributes)* let #name = #name; let #pattern = #name;)
}

/// Names the elided lifetimes in the arguments of a method.
struct Lifetimes {
    shared: Lifetime,
    /// Lifetimes behind a mutable reference or inside a named type, which may be invariant and need a name of their own.
    apart: Vec<Lifetime>,
    mutable: bool,
}

impl Lifetimes {
    fn apart(&mut self) -> Lifetime {
        let name = format!("'life{}", self.apart.len());
        let lifetime = Lifetime::new(&name, Span::call_site());
        self.apart.push(lifetime.clone());
        lifetime
    }
}

impl VisitMut for Lifetimes {
    fn visit_type_reference_mut(&mut self, reference: &mut TypeReference) {
        if reference.lifetime.as_ref().is_none_or(|it| it.ident == "_") {
            reference.lifetime = Some(if self.mutable {
                self.apart()
            } else {
                self.shared.clone()
            });
        }
        let outer = self.mutable;
        self.mutable |= reference.mutability.is_some();
        self.visit_type_mut(&mut reference.elem);
        self.mutable = outer;
    }

    fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
        if lifetime.ident == "_" {
            *lifetime = self.apart();
        }
    }

    // Lifetimes elided in a function type belong to that type.
    fn visit_type_fn_ptr_mut(&mut self, _: &mut syn::TypeFnPtr) {}

    fn visit_parenthesized_generic_arguments_mut(
        &mut self,
        _: &mut syn::ParenthesizedGenericArguments,
    ) {
    }
}

/// Names the elided lifetimes in the return type, which borrows from the arguments.
struct OfOutput<'a>(&'a Lifetime);

impl VisitMut for OfOutput<'_> {
    fn visit_type_reference_mut(&mut self, reference: &mut TypeReference) {
        reference.lifetime.get_or_insert_with(|| self.0.clone());
        visit_mut::visit_type_reference_mut(self, reference);
    }

    fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
        if lifetime.ident == "_" {
            *lifetime = self.0.clone();
        }
    }

    fn visit_type_fn_ptr_mut(&mut self, _: &mut syn::TypeFnPtr) {}

    fn visit_parenthesized_generic_arguments_mut(
        &mut self,
        _: &mut syn::ParenthesizedGenericArguments,
    ) {
    }
}
