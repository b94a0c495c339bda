;; Its allocator gives what cannot be used.
;; limits: plan_fuel = 20000000
;; plan: `alloc` | `unreachable`
(func (export "polyskill_v1_alloc") (param i32) (result i32) unreachable)
