// Package esx freezes machines of VMware ESXi and vCenter through their web service. Their files lie on datastores: this
// computer reaches them only where a datastore is mounted here, too.
//
// It was tested against the simulator of govmomi; it has not met the products themselves.
package esx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/hostfiles"
)

// New gives the driver. A target is URL/NAME: "https://root@esx1/web1". A query tells where datastores are mounted here:
// "https://root@esx1/sdk?datastore1=/mnt/ds1/web1". The user, the password and whether to trust any certificate are also
// taken from GOVC_USERNAME, GOVC_PASSWORD and GOVC_INSECURE, as by VMware's govc; GOVC_URL is for names without a URL.
func New() hypervisor.Driver { return driver{} }

type driver struct{}

func (driver) Name() string { return "esx" }

// host is a connection.
type host struct {
	*govmomi.Client
	url    *url.URL          // without a password
	mounts map[string]string // folders of this computer, by datastore
}

// connect logs in.
func connect(ctx context.Context, where string) (*host, error) {
	if where = cmp.Or(where, os.Getenv("GOVC_URL")); where == "" {
		return nil, fmt.Errorf("%w: no URL was given: esx:https://root@HOST/NAME, or set GOVC_URL", hypervisor.ErrUnavailable)
	}
	u, err := soap.ParseURL(where)
	if err != nil {
		return nil, errors.New("the URL can't be read: https://USER@HOST/NAME is one") // it may hold a password
	}
	h := &host{mounts: map[string]string{}}
	for store, dirs := range u.Query() {
		h.mounts[store] = dirs[0]
	}
	user := u.User.Username()
	password, _ := u.User.Password()
	user, password = cmp.Or(user, os.Getenv("GOVC_USERNAME")), cmp.Or(password, os.Getenv("GOVC_PASSWORD"))
	shown := *u
	if shown.User = nil; user != "" {
		shown.User = url.User(user)
	}
	h.url = &shown
	insecure, _ := strconv.ParseBool(os.Getenv("GOVC_INSECURE")) // anything else is no
	login := *u
	login.User, login.RawQuery = nil, ""
	if h.Client, err = govmomi.NewClient(ctx, &login, insecure); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", hypervisor.ErrUnavailable, u.Host, err)
	}
	if err := h.Login(ctx, url.UserPassword(user, password)); err != nil {
		return nil, fmt.Errorf("%s: logging in as %q: %w; the password is taken from GOVC_PASSWORD", u.Host, user, err)
	}
	return h, nil
}

// machines gives the references of all machines with their names.
func (h *host) machines(ctx context.Context) ([]mo.VirtualMachine, error) {
	v, err := view.NewManager(h.Client.Client).CreateContainerView(ctx, h.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
	if err != nil {
		return nil, err
	}
	defer v.Destroy(context.WithoutCancel(ctx))
	var list []mo.VirtualMachine
	err = v.Retrieve(ctx, []string{"VirtualMachine"}, []string{"name"}, &list)
	return list, err
}

type machine struct {
	hostfiles.Untracked
	*object.VirtualMachine
	host    *host
	name    string
	own     hostfiles.Steps
	watched bool // this process watches that it stays off
}

func (driver) Open(ctx context.Context, target string) (hypervisor.Machine, error) {
	where, name := "", target
	// Without a scheme it may be any path, for which no host is asked.
	if i := strings.LastIndexByte(target, '/'); i >= 0 && strings.Contains(target[:i], "://") {
		where, name = target[:i], target[i+1:]
	}
	h, err := connect(ctx, where)
	if err != nil {
		return nil, err
	}
	m, err := h.find(ctx, name)
	if err != nil {
		h.Logout(context.WithoutCancel(ctx))
		return nil, err
	}
	return m, nil
}

// find looks for a machine by its name, in which vSphere writes a slash as %2f, or by its reference.
func (h *host) find(ctx context.Context, name string) (*machine, error) {
	list, err := h.machines(ctx)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(vm mo.VirtualMachine) bool { return vm.Name != name && vm.Self.Value != name })
	switch len(list) {
	case 0:
		return nil, hypervisor.ErrNoMachine
	case 1:
		return &machine{VirtualMachine: object.NewVirtualMachine(h.Client.Client, list[0].Self), host: h, name: list[0].Name}, nil
	}
	var refs []string
	for _, vm := range list {
		refs = append(refs, vm.Self.Value)
	}
	return nil, fmt.Errorf("several machines are called so: name one by its reference: %s", strings.Join(refs, ", "))
}

func (driver) List(ctx context.Context) ([]string, error) {
	h, err := connect(ctx, "")
	if err != nil {
		return nil, err
	}
	defer h.Logout(context.WithoutCancel(ctx))
	list, err := h.machines(ctx)
	var targets []string
	for _, vm := range list {
		targets = append(targets, h.url.String()+"/"+vm.Name)
	}
	slices.Sort(targets)
	return targets, err
}

// Close logs out. A session that ended already needs none.
func (m *machine) Close() error {
	m.own.Close()
	m.host.Logout(context.Background())
	return nil
}

// properties reads what Describe and the steps look at.
func (m *machine) properties(ctx context.Context, names ...string) (*mo.VirtualMachine, error) {
	vm := &mo.VirtualMachine{}
	if err := m.Properties(ctx, m.Reference(), names, vm); err != nil {
		return nil, m.gone(err)
	}
	return vm, nil
}

// gone tells whether an error means that there is no such machine, or no such host, any more.
func (m *machine) gone(err error) error {
	if soap.IsSoapFault(err) {
		if _, ok := soap.ToSoapFault(err).VimFault().(types.ManagedObjectNotFound); ok {
			return fmt.Errorf("%w: %w", hypervisor.ErrNoMachine, err)
		}
		return err
	}
	if e := (*url.Error)(nil); errors.As(err, &e) {
		return fmt.Errorf("%w: %w", hypervisor.ErrUnavailable, err)
	}
	return err
}

// wait waits for the end of a task. When nobody waits for it any more it goes on.
func (m *machine) wait(ctx context.Context, task *object.Task, err error) error {
	if err != nil {
		return m.gone(err)
	}
	return task.Wait(ctx)
}
