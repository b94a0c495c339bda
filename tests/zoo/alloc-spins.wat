;; Its allocator gives what cannot be used.
;; limits: plan_fuel = 20000000
;; plan: `alloc` | all fuel consumed
(func (export "polyskill_v1_alloc") (param i32) (result i32) (loop $l (br $l)) unreachable)
