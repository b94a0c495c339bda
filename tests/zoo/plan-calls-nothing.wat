;; A trap while planning.
;; plan: `plan` | out of bounds
(type $other (func (result i32)))
(table 1 funcref)
(func $plan (param i32 i32) (result i32) (call_indirect (type $other) (i32.const 7)))
