//! What the shop sells: the seed of the product, order and inventory databases.

/// One product.
pub struct Product {
    /// Its name in orders.
    pub sku: &'static str,
    /// What people call it.
    pub name: &'static str,
    /// Price of one.
    pub price_cents: i64,
    /// How many a new inventory starts with.
    pub stock: u32,
}

/// All of them. The brass lamp is scarce, so that orders run out of it.
pub const PRODUCTS: [Product; 8] = [
    product("tea-assam", "Assam tea, 250 g", 890, 10_000),
    product("tea-sencha", "Sencha tea, 100 g", 1_450, 10_000),
    product("pot-iron", "Cast iron teapot", 6_900, 10_000),
    product("cup-blue", "Blue cup", 1_200, 20_000),
    product("cup-white", "White cup", 1_100, 20_000),
    product("kettle", "Kettle with thermometer", 8_900, 5_000),
    product("tray-oak", "Oak tray", 4_200, 5_000),
    product("lamp-brass", "Brass lamp, last pieces", 12_900, 12),
];

const fn product(sku: &'static str, name: &'static str, price_cents: i64, stock: u32) -> Product {
    Product { sku, name, price_cents, stock }
}

/// The product of that name.
pub fn find(sku: &str) -> Option<&'static Product> {
    PRODUCTS.iter().find(|p| p.sku == sku)
}
